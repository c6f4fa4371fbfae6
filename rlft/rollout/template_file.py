"""A chat template in a file, compiled as transformers would, before that is loaded."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rlft.errors import ConfigError
from rlft.files import read_text


class Generation(Extension):
    """The block of transformers that marks what the assistant says; here its content alone."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_template_file(path: str) -> None:
    """Refuse a file that is not there or holds no Jinja template. Raises ConfigError."""
    if not Path(path).is_file():
        raise ConfigError(f"chat_template: no file {path!r} (looked in {Path.cwd()})")
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    try:
        environment.compile(read_text(path, "chat_template"))
    except TemplateSyntaxError as error:
        raise ConfigError(f"chat_template {path!r}: no Jinja template: line {error.lineno}: {error.message}; correct it there") from error
