"""The command line: its help, version, list of recipes and completion."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

import rlft
from rlft import cli
from rlft.config import RECIPES

COMMANDS = typer.main.get_command(cli.app).commands


def shown(capsys, monkeypatch, *arguments):
    """What a command that ends well prints."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["rlft", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert not exit.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_help_shows_the_square_brackets_that_a_docstring_has(capsys, monkeypatch, name):
    said = shown(capsys, monkeypatch, *([name] if name else []), "--help")
    texts = [COMMANDS[name].callback.__doc__] if name else [command.callback.__doc__ for command in COMMANDS.values()]
    for brackets in re.findall(r"\[[a-z.]+\]", "".join(texts)):
        assert brackets in said
    assert "\\[" not in said


def test_some_help_has_brackets():
    assert "[eval.data]" in COMMANDS["eval"].callback.__doc__  # the control: there is something to show


@pytest.mark.parametrize("asked", [[], ["train"]])
def test_help_may_be_asked_for_as_a_command(capsys, monkeypatch, asked):
    assert shown(capsys, monkeypatch, "help", *asked) == shown(capsys, monkeypatch, *asked, "--help") != ""


def test_the_version_stands_in_one_place(capsys, monkeypatch):
    stated = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["version"]
    assert rlft.__version__ == stated
    assert shown(capsys, monkeypatch, "--version") == f"rlft {stated}\n"


def test_every_recipe_is_listed_with_one_line(capsys, monkeypatch):
    lines = shown(capsys, monkeypatch, "recipes").splitlines()
    assert [line.split()[0] for line in lines] == sorted(file.stem for file in RECIPES.glob("*.toml"))
    assert all(len(line.split()) > 3 for line in lines)


@pytest.mark.parametrize(("typed", "offered"), [("rlft tr", "train\ntrain-rm"), ("rlft sub", "submit"), ("rlft x", "")])
def test_a_shell_completes_commands(typed, offered):
    code = "import sys; sys.argv = ['rlft']; from rlft.cli import main; main()"
    asked = {**os.environ, "_RLFT_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=asked, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == (offered, "")
