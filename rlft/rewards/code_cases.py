"""The tests of a programming task in the formats of the common data sets, as cases: what goes in, and what is expected out.

    {"inputs": ["1 2\\n"], "outputs": ["3\\n"]}                          standard input and output (APPS, TACO)
    {"fn_name": "f", "inputs": [[1, 2]], "outputs": [3]}                function calls (APPS, TACO)
    [{"input": "1 2", "output": "3", "testtype": "stdin"}]              LiveCodeBench; "functional" has one JSON value a line
    ["assert f(1, 2) == 3"] or {"assert_case": [...]}                   asserts (MBPP)
    "def check(candidate):\\n    assert candidate(1, 2) == 3"            a test function (HumanEval)

All but the last may stand as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.code_asserts import Assertion, Unconverted, read_asserts
from rlft.rewards.code_helpers import with_helpers
from rlft.types import Task

NAMES = ("fn_name", "func_name", "entry_point")  # where data sets write the name of the function to call


@dataclass(frozen=True)
class Printed:
    """A program is run on `stdin`, and prints `expected`."""

    stdin: str
    expected: str


@dataclass(frozen=True)
class Returned:
    """A function is called, and returns `expected`, which was written as JSON.

    `wrapped`: every output of the task is a list of one value, and the value alone counts too (APPS, TACO).
    """

    function: str
    args: tuple[Any, ...]
    expected: Any
    wrapped: bool = False
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Case = Printed | Returned | Assertion | Unconverted


def read_cases(task: Task, tests: str = "") -> list[Case]:
    """The cases of a task, in order.

    Args:
        tests: field of `task.meta` that holds them; "" for `task.answer`.

    Raises:
        TaskError: there are none, or they are in none of the formats.
    """
    where = f"meta[{tests!r}]" if tests else "answer"
    given = task.meta.get(tests) if tests else task.answer
    try:
        cases = _read(given, task.meta)
    except (ValueError, TypeError, KeyError, SyntaxError, RecursionError) as error:
        raise TaskError(f"code_tests: {where} of task {task.id!r} holds no tests that can be read: {error}") from error
    if not cases:
        raise TaskError(f"code_tests: {where} of task {task.id!r} holds no tests")
    if any(isinstance(case, (Assertion, Unconverted)) for case in cases):
        return list(with_helpers(task, cases, _function(task.meta)))  # type: ignore[arg-type]
    return cases


def _read(given: Any, meta: Mapping[str, Any]) -> list[Case]:
    if isinstance(given, str):
        if given.lstrip().startswith(("{", "[")):
            return _read(json.loads(given), meta)
        return list(read_asserts([given], _function(meta)))
    if isinstance(given, Mapping):
        if "assert_case" in given:
            return list(read_asserts(given["assert_case"], _function({**meta, **given})))
        return _pairs(given["inputs"], given["outputs"], _function(given))
    if not isinstance(given, Sequence):
        raise ValueError(f"{type(given).__name__}; expected a mapping, a list or text")
    if all(isinstance(item, str) for item in given):
        return list(read_asserts(given, _function(meta)))
    return [_live(item, _function(meta)) for item in given]


def _function(meta: Mapping[str, Any]) -> str:
    """The function's name if it is written anywhere, else ""."""
    inner = meta.get("metadata")
    places = [meta, json.loads(inner) if isinstance(inner, str) and inner else inner]
    names = [place[name] for place in places if isinstance(place, Mapping) for name in NAMES if place.get(name)]
    return str(names[0]) if names else ""


def _pairs(inputs: Sequence[Any], outputs: Sequence[Any], function: str) -> list[Case]:
    if isinstance(inputs, str) or isinstance(outputs, str) or len(inputs) != len(outputs):
        raise ValueError("'inputs' and 'outputs' are not lists of one length")
    if not function:
        return [Printed(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True)]
    wrapped = all(isinstance(expected, list) and len(expected) == 1 for expected in outputs)
    return [_returned(function, given, expected, wrapped) for given, expected in zip(inputs, outputs, strict=True)]


def _returned(function: str, given: Any, expected: Any, wrapped: bool = False) -> Returned:
    """Arguments are a list, or text with one JSON value a line; then what is expected is JSON text too."""
    if isinstance(given, str):
        args = [json.loads(line) for line in given.split("\n") if line.strip()]
        return Returned(function, tuple(args), json.loads(expected) if isinstance(expected, str) else expected)
    if not isinstance(given, list):
        raise ValueError(f"input {given!r} is not a list of arguments")
    return Returned(function, tuple(given), expected, wrapped)


def _live(item: Any, function: str) -> Case:
    if not isinstance(item, Mapping):
        raise ValueError(f"{item!r} in a list of tests")
    function = _function(item) or function
    if item.get("testtype", "stdin") == "stdin":
        return Printed(_text(item["input"]), _text(item["output"]))
    if not function:
        raise ValueError(f"a functional test without the function's name; expected one of {', '.join(NAMES)} in the task's meta")
    return _returned(function, item["input"], item["output"])


def _text(given: Any) -> str:
    """Input or output as text; APPS has some as lists of lines."""
    if isinstance(given, list):
        return "\n".join(map(str, given))
    if not isinstance(given, str):
        raise ValueError(f"{given!r} is not text")
    return given
