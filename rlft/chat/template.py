"""A model's chat template: messages and tools -> text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rlft.chat.messages import fresh
from rlft.errors import ConfigError, RenderError
from rlft.types import Message

Made = TypeVar("Made")
PLAIN_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"


def attempt(make: Callable[..., Made], *args: Any) -> Made | RenderError:
    """What `make` makes, or why the chat template cannot render it."""
    try:
        return make(*args)
    except RenderError as error:
        return error


class ChatTemplate:
    """The template of a tokenizer, or the one given instead.

    A tokenizer may name several: "tool_use" serves where there are tools, "default" elsewhere. One without any is given a
    plain one: contents joined as they are, an EOS after each assistant message.

    Args:
        tokenizer: a transformers tokenizer.
        given: the text of a Jinja template; "": the tokenizer's own.

    Raises:
        ConfigError: named templates without a "default", or a template that renders no user message.
    """

    def __init__(self, tokenizer: Any, given: str = "") -> None:
        own = given or tokenizer.chat_template
        self.tokenizer, self.plain = tokenizer, not own
        self.named: dict[str, str] = dict(own) if isinstance(own, Mapping) else {"default": own or PLAIN_TEMPLATE}
        if "default" not in self.named:
            raise ConfigError(f"the tokenizer's chat templates are {sorted(self.named)}: none is 'default'; set chat_template to a file")
        mark = fresh(1, self.source)[0]
        self.parts = False  # whether it reads a content as a list of parts only
        told = attempt(self.text, [{"role": "user", "content": mark}])
        if isinstance(told, str) and mark in told:
            return
        self.parts = True
        in_parts = attempt(self.text, [{"role": "user", "content": mark}])
        if isinstance(in_parts, str) and mark in in_parts:
            return
        if isinstance(told, RenderError):
            raise told
        raise ConfigError("the chat template does not render what a user says; set chat_template to one that does")

    @property
    def source(self) -> str:
        """The text of all its templates."""
        return "\n".join(self.named.values())

    def choose(self, tools: Sequence[Any]) -> str:
        """The template that serves a conversation with these tools."""
        return self.named.get("tool_use", self.named["default"]) if tools else self.named["default"]

    def text(self, messages: Sequence[Message], tools: Sequence[Any] = (), open_answer: bool = True) -> str:
        """The conversation as text; with `open_answer` up to where the assistant speaks next.

        Raises:
            RenderError: the template refuses it.
        """
        shaped = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages] if self.parts else list(messages)
        try:
            text = self.tokenizer.apply_chat_template(
                shaped, tools=list(tools) or None, chat_template=self.choose(tools), add_generation_prompt=open_answer, tokenize=False
            )
            text.encode()  # no tokenizer takes a lone surrogate
        except Exception as error:  # a template is a program by others: it may raise anything
            what = f"{type(error).__name__}: " if not type(error).__module__.startswith("jinja2") else ""
            roles = " ".join(message["role"] for message in messages)
            told = f"the chat template refuses a conversation of {roles}: {what}{error}; change the messages, or set chat_template"
            raise RenderError(told) from error
        return text
