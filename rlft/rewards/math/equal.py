"""Whether two answers are the same mathematics: equal text, equal numbers, else math-verify.

Nothing here has a deadline: it runs in processes that can be killed (math-verify's own deadlines are
alarms, which work in the main thread only and do not stop C code, so they are off).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, normalize_latex
from latex2sympy2_extended.logic import And
from math_verify import verify
from math_verify.parser import parse_latex_cached
from sympy.core.relational import Relational

from rlft.rewards.math.latex import tidy
from rlft.rewards.math.numbers import is_number, near, same_number, terminates, with_imaginary

__all__ = ["Comparison", "parse", "parse_gold", "same_text", "same_value", "tidy"]

ROUNDED = 0.01  # by how much what stands on both sides of "=" may differ where one is rounded: pi = 3.14
_NORMAL = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_INTEGER = re.compile(r"[-+]?\d{1,500}", re.ASCII)
_SPACES = re.compile(r"(?<!\w) | (?!\w)")
_APART = r"(?:\s|~|\\[,;:! ]|\\q?quad(?![A-Za-z]))+"
_SIDE_BY_SIDE = re.compile(rf"(?:^|[=,;(\[+\-*/<>&]|\\\{{)\s*[-+]?\d+(?:\.\d+)?{_APART}\d", re.ASCII)
_SAMES = re.compile(r"\\(?:approx|simeq|thickapprox)(?![A-Za-z])|≅")


@dataclass(frozen=True)
class Comparison:
    """How values are compared; see `math_equal`."""

    float_rounding: int = 6
    strict: bool = True
    allow_set_relation_comp: bool = True


def same_text(answer: str, gold: str) -> bool | None:
    """Whether two tidied answers are written the same; None where only computing tells."""
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold):
        return int(answer) == int(gold)
    return _SPACES.sub("", answer) == _SPACES.sub("", gold) or None


def parse(latex: str) -> list[Any]:
    """Tidied LaTeX as [the expressions that it may be read as, none or one or the sides of "pi = 3.14", and its normalised text].

    Raises MemoryError.
    """
    normal = normalize_latex(_SAMES.sub("=", latex), _NORMAL)
    if _SIDE_BY_SIDE.search(normal):  # the parser would add the two numbers, which are themselves only
        return [sympy.Symbol(normal), normal]
    try:
        expression = with_imaginary(_alternatives(latex) or parse_latex_cached(normal))
    except (MemoryError, RecursionError):
        raise
    except Exception:  # what the grammar raises: no mathematics, which the missing expression says
        return [normal]
    return [*_sides(expression), normal]


parse_gold = lru_cache(maxsize=4096)(parse)  # the trajectories of a group share it


def same_value(answer: list[Any], gold: list[Any], how: Comparison) -> bool:
    """Whether any reading of an answer equals any of the gold's.

    Raises:
        Exception: whatever sympy raises where it cannot compare two expressions.
    """
    return any(_same(said, right, how) for right, said in product(filter(_comparable, gold), filter(_comparable, answer)))


def _comparable(reading: Any) -> bool:
    """Division by zero ("12:00") and nan equal nothing; such an answer is compared as text."""
    return reading not in (sympy.zoo, sympy.nan) if isinstance(reading, sympy.Basic) else True


def _alternatives(latex: str) -> Any:
    """The set that inequalities joined by "or" describe; None where that is not what is written."""
    parts = re.split(r"\bor\b", latex)
    if len(parts) < 2 or len(parts) > 20:
        return None
    read = [parse_latex_cached(normalize_latex(part, _NORMAL)) for part in parts]
    sets = [_set_of(relation) for relation in read] if all(_is_inequality(relation) for relation in read) else []
    return sympy.Union(*sets) if sets and all(found is not None for found in sets) else None


def _is_inequality(expression: Any) -> bool:
    parts = _parts(expression)
    return bool(parts) and all(isinstance(part, Relational) and not isinstance(part, sympy.Eq) for part in parts)


def _set_of(relation: Any) -> Any:
    """The set of the one variable's values that an inequality describes, None where there is none."""
    if not _is_inequality(relation) or len(relation.free_symbols) != 1:
        return None
    return relation.as_set()


def _sides(expression: Any) -> list[Any]:
    """What an expression stands for: itself, or the numbers of "x = pi = 3.14", which must be one; [] where they are two ("8 = 7")."""
    if any(not _agree(equation) for equation in sympy.preorder_traversal(expression) if isinstance(equation, sympy.Eq)):
        return []
    chain = _chain(expression)
    numbers = [side for side in chain if is_number(side)]
    if len(numbers) < 2:
        return [expression]
    head = [] if is_number(chain[0]) else [chain[0]]
    return [sympy.Eq(head[0], number, evaluate=False) if head else number for number in numbers]


def _chain(expression: Any) -> Sequence[Any]:
    """a, b and c of a = b = c."""
    equations = _parts(expression)
    if not all(isinstance(equation, sympy.Eq) for equation in equations):
        return ()
    linked = all(one.args[1] == other.args[0] for one, other in zip(equations, equations[1:], strict=False))
    return [equations[0].args[0], *(equation.args[1] for equation in equations)] if linked else ()


def _parts(expression: Any) -> Sequence[Any]:
    """The relations of a chain of them, in the order in which they are written."""
    return expression._unsorted_args if isinstance(expression, And) else (expression,)  # type: ignore[attr-defined]


def _agree(equation: Any) -> bool:
    """Whether an equation of two numbers holds, one of them rounded if need be; any other one does."""
    left, right = equation.args
    if not (is_number(left) and is_number(right)):
        return True
    return same_number(left, right, 9) if terminates(left) and terminates(right) else near(left, right, ROUNDED)


def _same(said: Any, gold: Any, how: Comparison) -> bool:
    if isinstance(said, sympy.Basic | sympy.MatrixBase) and isinstance(gold, sympy.Basic | sympy.MatrixBase):
        if is_number(said) and is_number(gold):
            return same_number(said, gold, how.float_rounding)
        if (told := _same_parts(said, gold, how)) is not None:
            return told
    return _verified(said, gold, how) and not _differ(said, gold, how)


def _same_parts(said: Any, gold: Any, how: Comparison) -> bool | None:
    """Whether collections of numbers are the same; None for what is none."""
    if _is_named(said) and not _is_relation(gold):
        return _same(said.args[1], gold, how)  # x = 5 for 5
    ends, right = _numbers(said), _numbers(gold)
    if ends is None or right is None:
        return None
    if type(said) is not type(gold):  # (1, 2) is read as an interval, where a point may be meant
        pair = {type(said), type(gold)} <= {sympy.Interval, sympy.Tuple} and all(_is_open(side) for side in (said, gold))
        return _in_order(ends, right, how) if pair else None
    if isinstance(said, sympy.Interval):
        return (said.left_open, said.right_open) == (gold.left_open, gold.right_open) and _in_order(ends, right, how)
    if isinstance(said, sympy.FiniteSet):
        return _in_any_order(ends, right, how)
    return getattr(said, "shape", None) == getattr(gold, "shape", None) and _in_order(ends, right, how)


def _is_named(value: Any) -> bool:
    return isinstance(value, sympy.Eq) and isinstance(value.args[0], sympy.Symbol)


def _is_relation(value: Any) -> bool:
    return isinstance(value, Relational | And)


def _is_open(pair: Any) -> bool:
    return len(pair) == 2 if isinstance(pair, sympy.Tuple) else bool(pair.is_open)


def _numbers(collection: Any) -> list[Any] | None:
    """What stands in a set, a tuple, an interval or a matrix, if all of it is numbers."""
    if isinstance(collection, sympy.Interval):
        found = [collection.start, collection.end]
    elif isinstance(collection, sympy.FiniteSet | sympy.Tuple):
        found = list(collection.args)
    elif isinstance(collection, sympy.MatrixBase):
        found = collection.flat()
    else:
        return None
    return found if all(map(is_number, found)) else None


def _in_order(said: Sequence[Any], gold: Sequence[Any], how: Comparison) -> bool:
    return len(said) == len(gold) and all(same_number(a, b, how.float_rounding) for a, b in zip(said, gold, strict=True))


def _in_any_order(said: Sequence[Any], gold: Sequence[Any], how: Comparison) -> bool:
    left = list(gold)
    for number in said:
        place = next((i for i, other in enumerate(left) if same_number(number, other, how.float_rounding)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _verified(said: Any, gold: Any, how: Comparison) -> bool:
    return verify(
        gold,
        said,
        float_rounding=how.float_rounding,
        strict=how.strict,
        allow_set_relation_comp=how.allow_set_relation_comp,
        timeout_seconds=None,
        raise_on_error=True,
    )


def _differ(said: Any, gold: Any, how: Comparison) -> bool:
    """Whether two expressions that math-verify found equal, to six decimals, are not: at some values of their variables."""
    if not (isinstance(said, sympy.Basic) and isinstance(gold, sympy.Basic) and (said.has(sympy.Float) or gold.has(sympy.Float))):
        return False
    draw = random.Random(0)
    variables = sorted(said.free_symbols & gold.free_symbols, key=str)
    values = {variable: sympy.Rational(draw.randint(101, 997), 100) for variable in variables}
    return any(not same_number(a, b, how.float_rounding) for a, b in _pairs(said, gold, values))


def _pairs(said: Any, gold: Any, values: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """The numbers that stand in the same place of two expressions of one shape, at some values of the variables."""
    if isinstance(said, sympy.Expr) and isinstance(gold, sympy.Expr):
        a, b = said.subs(values), gold.subs(values)
        if is_number(a) and is_number(b):
            yield a, b
    elif type(said) is type(gold) and len(said.args) == len(gold.args):
        for a, b in zip(said.args, gold.args, strict=True):
            yield from _pairs(a, b, values)
