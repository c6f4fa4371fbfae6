"""Functions that a task's own text defines and its tests use, as `encode_cyclic` of HumanEval/38: they go with the tests."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlft.rewards.code_asserts import Assertion, Unconverted
from rlft.types import Task


def with_helpers(task: Task, tests: Sequence[Assertion | Unconverted], function: str) -> list[Assertion | Unconverted]:
    """Test code with the definitions that the task gives for it, so that no answer decides what they do.

    They are looked for in `meta["prompt"]` and in the task's messages. What is not found there is asked of the program, as
    the data set's own harness does.

    Args:
        function: what is tested; it is never taken from there. "" where the tests do not name it: then nothing is.
    """
    given = _definitions(task, function) if function and any(_names(test) - {function} for test in tests) else {}
    return [_with(test, given, function) for test in tests]


def _names(test: Assertion | Unconverted) -> set[str]:
    """What the test code uses of others."""
    code = test.again if isinstance(test, Assertion) else test
    return {*code.functions, *code.lacks}


def _with(test: Assertion | Unconverted, given: dict[str, str], function: str) -> Assertion | Unconverted:
    wanted = _names(test) & given.keys() - {function}
    if not wanted:
        return test
    code = test.again if isinstance(test, Assertion) else test
    source = "\n".join([*dict.fromkeys(given[name] for name in sorted(wanted)), code.source])
    rest = [tuple(name for name in names if name not in wanted) for names in (code.functions, code.lacks)]
    return replace(code, source=source, functions=rest[0], lacks=rest[1])


def _definitions(task: Task, function: str) -> dict[str, str]:
    """By name of a function: the Python code that defines it, of the first text that does. `function` itself is left out."""
    found: dict[str, str] = {}
    for content in [task.meta.get("prompt"), *(message.get("content") for message in task.messages)]:
        body = list(_statements(content)) if isinstance(content, str) else []
        body = [node for node in body if not (isinstance(node, ast.FunctionDef) and node.name == function)]
        code = "\n".join(map(ast.unparse, body))
        found = {**{node.name: code for node in body if isinstance(node, ast.FunctionDef)}, **found}
    return found


def _statements(text: str) -> Iterator[ast.stmt]:
    """The imports and functions among the lines of a text, whatever stands around them."""
    for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE):
        if block.startswith(("def ", "import ", "from ")):
            try:
                yield from ast.parse(block).body
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue  # it was not Python after all
