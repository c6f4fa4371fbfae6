"""The table of docs/algorithms.md, made from the code: `python tests/method_table.py` writes it anew."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlft.algorithms import BUILTIN
from rlft.names import import_object

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/algorithms.md"
START, END = "<!-- methods -->\n", "<!-- end of methods -->\n"
# Imported by so many methods that their tests say little of a single one.
SHARED = {"advantages", "base", "kl", "losses", "masking", "policy_gradient"}
HEADINGS = ("method", "what it is", "source", "own options", "shared options", "file (lines)", "tests")


def table() -> str:
    """One line per built-in name, in order of files."""
    made = [(path.partition(":")[0], name, import_object(path)) for name, path in BUILTIN.items()]
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(name, module, fn)) + " |" for module, name, fn in sorted(made, key=lambda one: one[:2])]
    return "\n".join(lines) + "\n"


def cells(name: str, module: str, fn: Callable[..., Any]) -> tuple[str, ...]:
    """A method as cells, everything read from its signature, its docstrings and the tree."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    text = f"{fn.__doc__}\n{sys.modules[module].__doc__}"
    sources = [f"[{number}](https://arxiv.org/abs/{number})" for number in re.findall(r"arXiv:(\d{4}\.\d{4,5})", text)]
    sources += [f"[{number}](https://doi.org/{number})" for number in re.findall(r"doi:(10\.\d+/\w+)", text)]
    parameters = inspect.signature(fn).parameters.values()
    own = [f"`{p.name}`" if p.default is p.empty else f"`{p.name} = {p.default!r}`" for p in parameters if p.kind is not p.VAR_KEYWORD]
    shared = any(p.kind is p.VAR_KEYWORD for p in parameters)
    helpers = helpers_of(file.read_text())
    tests = [
        path
        for path in sorted((ROOT / "tests/algorithms").glob("test_*.py"))
        if re.search(rf"import .*\b{name}\b", path.read_text()) or path.stem.removeprefix("test_") in helpers
    ]
    return (
        f"`{name}`",
        first_sentence(inspect.getdoc(fn) or "").replace("|", "\\|"),
        ", ".join(dict.fromkeys(sources)) or "–",
        ", ".join(own) or "–",
        "yes" if shared else "no",
        f"[{file.name}](../{file.relative_to(ROOT)}) ({len(file.read_text().splitlines())})",
        ", ".join(f"[{path.stem.removeprefix('test_')}](../{path.relative_to(ROOT)})" for path in tests),
    )


def first_sentence(text: str) -> str:
    """Up to a stop, colon, semicolon or paragraph's end that stands outside of parentheses, on one line."""
    ends = (match.start() for match in re.finditer(r"(?<!\bDr\.)(?<=[.;:])\s|\n\n", text))
    end = next((end for end in ends if text[:end].count("(") == text[:end].count(")")), len(text))
    return text[:end].replace("\n", " ").rstrip(".:;")


def helpers_of(text: str) -> set[str]:
    """Modules that a method's file imports from its own room, but for the shared ones and other methods' files."""
    imported = set(re.findall(r"^from rlft\.algorithms(?:\.| import )(\w+)", text, re.MULTILINE))
    return imported - SHARED - {path.partition(":")[0].rpartition(".")[2] for path in BUILTIN.values()}


def main() -> None:
    before, _, rest = PAGE.read_text().partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + START + table() + END + after)


if __name__ == "__main__":
    main()
