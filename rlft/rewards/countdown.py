"""Countdown: an equation that makes a target out of given numbers."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.extract import final, given_json, last_boxed, short
from rlft.types import Task, Trajectory

MAX_CHARACTERS = 300  # of an equation
_ALLOWED = re.compile(r"[0-9+\-*/() ]+", re.ASCII)
_PLAIN = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "[": "(", "]": ")", "$": " "})


def countdown(task: Task, trajectory: Trajectory, *, at_most_once: bool = False) -> tuple[float, str]:
    r"""1 if the equation makes the target of the given numbers with + - * / and parentheses, each used exactly once; else 0.

    Reads the last <answer>...</answer> or else the last line, in it the last \boxed{...} if there is one; "= target" may follow.
    Calculates with exact fractions. Numbers and target come from `task.meta` ("numbers" or "nums", "target") or
    from the answer {"numbers", "target"}.

    Args:
        at_most_once: whether numbers may be left out.

    Raises:
        TaskError: the task has no whole numbers and target.
    """
    numbers, target = _problem(task)
    lines = [line for line in final(trajectory).splitlines() if line.strip()]
    text = lines[-1] if lines else ""
    boxed = last_boxed(text)
    left, equals, right = _plain(text if boxed is None else boxed).partition("=")
    try:
        used, value = evaluate(left)
        claimed = evaluate(right)[1] if equals else value
    except ValueError as error:
        return 0.0, str(error)
    surplus, unused = Counter(used) - Counter(numbers), Counter(numbers) - Counter(used)
    if surplus or (unused and not at_most_once):
        return 0.0, f"uses {short(sorted(used))} of the numbers {short(sorted(numbers))}"
    if value != target or claimed != target:
        return 0.0, f"makes {short(str(value if value != target else claimed))}, not {target}"
    return 1.0, ""


def evaluate(expression: str) -> tuple[list[int], Fraction]:
    """The numbers that an expression of whole numbers, + - * / and parentheses uses, and its value.

    Raises:
        ValueError: it is no such expression, is longer than MAX_CHARACTERS, or divides by zero.
    """
    expression = expression.strip()
    if len(expression) > MAX_CHARACTERS or not _ALLOWED.fullmatch(expression):
        raise ValueError("no equation of whole numbers, + - * / and parentheses")
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{short(expression)} is no equation") from None
    used: list[int] = []
    return used, _value(tree, used)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    match node:
        case ast.Constant(value=int(number)):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            a, b = _value(left, used), _value(right, used)
            if isinstance(op, ast.Div) and not b:
                raise ValueError("divides by zero")
            return a + b if isinstance(op, ast.Add) else a - b if isinstance(op, ast.Sub) else a * b if isinstance(op, ast.Mult) else a / b
    raise ValueError("only + - * / and parentheses are allowed")


def _plain(text: str) -> str:
    text = text.replace(r"\times", "*").replace(r"\cdot", "*").replace(r"\div", "/").replace(r"\left", "").replace(r"\right", "")
    return text.translate(_PLAIN).strip(" .`")


def _problem(task: Task) -> tuple[list[int], int]:
    answer = given_json(task.answer)
    given: Mapping[str, Any] = answer if isinstance(answer, Mapping) else task.meta
    numbers, target = given_json(given.get("numbers", given.get("nums"))), given.get("target")
    try:
        return [_whole(number) for number in numbers or ()] or [_whole(None)], _whole(target)
    except (TypeError, ValueError):
        raise TaskError(
            f"countdown: task {task.id!r} has numbers {short(numbers)} and target {short(target)}; expected whole numbers in meta or answer"
        ) from None


def _whole(number: Any) -> int:
    if isinstance(number, bool) or int(number) != float(number):
        raise ValueError(f"{number!r} is no whole number")
    return int(number)
