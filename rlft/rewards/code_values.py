"""When what a program returned or printed counts as the expected value: exact types, unless told otherwise."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class Comparison:
    """How values are compared.

    Attributes:
        tolerance: None, and a number equals only the same number of the same type (5.0 is not 5); else int and
            float are both numbers, and two are equal within this relative or absolute difference. A bool is never a number.
        from_json: the expected value was written as JSON, which has neither tuples nor keys other than text:
            a tuple found equals a list expected, a key 1 found equals a key "1" expected.
    """

    tolerance: float | None = None
    from_json: bool = False


def same_value(found: Any, expected: Any, how: Comparison = Comparison()) -> bool:
    """Whether plain data (None, bool, int, float, str, list, tuple, dict, set) equals plain data. NaN equals NaN."""
    if how.from_json and type(found) is tuple:
        found = list(found)
    if how.tolerance is not None and _is_number(found) and _is_number(expected):
        return close(found, expected, how.tolerance)
    if type(found) is not type(expected):
        return False
    if isinstance(expected, (list, tuple)):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(same_value(a, b, how) for a, b in pairs)
    if isinstance(expected, dict):
        left, right = _by_key(found, how), _by_key(expected, how)
        return len(left) == len(found) and left.keys() == right.keys() and all(same_value(left[key], right[key], how) for key in right)
    if isinstance(expected, (set, frozenset)):
        return set(map(_typed, found)) == set(map(_typed, expected)) or (how.tolerance is not None and found == expected)
    return found == expected or (isinstance(expected, float) and math.isnan(found) and math.isnan(expected))


def same_output(found: str, expected: str, how: Comparison = Comparison()) -> bool:
    """Whether printed text equals the expected text, line by line; white space at the end of a line and of the text aside.

    With a tolerance, lines are compared word by word, and two words that are numbers as numbers.
    """
    pairs = zip_longest(_lines(found), _lines(expected))
    return all(a is not None and b is not None and (a == b or _close_words(a, b, how.tolerance)) for a, b in pairs)


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two numbers differ by at most `tolerance`, relative or absolute. Whole numbers of any size are compared exactly."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    try:
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance) or (math.isnan(a) and math.isnan(b))
    except OverflowError:  # an int beyond every float is close to none
        return a == b


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _typed(value: Any) -> Any:
    """A hashable value that equals another only if their types are equal too."""
    if isinstance(value, (tuple, frozenset)):
        return type(value), type(value)(map(_typed, value))
    return type(value), value


def _by_key(mapping: dict[Any, Any], how: Comparison) -> dict[Any, Any]:
    return {_json_key(key) if how.from_json else _typed(key): value for key, value in mapping.items()}


def _json_key(key: Any) -> Any:
    """A key as JSON would write it; what it cannot write stays as it is."""
    if isinstance(key, str):
        return key
    # Python does not write out an int of more than 4300 digits.
    written = key is None or isinstance(key, (bool, float)) or (isinstance(key, int) and key.bit_length() < 14_000)
    return json.dumps(key) if written else _typed(key)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _close_words(a: str, b: str, tolerance: float | None) -> bool:
    if tolerance is None:
        return False
    left, right = a.split(), b.split()
    return len(left) == len(right) and all(x == y or _close_texts(x, y, tolerance) for x, y in zip(left, right, strict=True))


def _close_texts(a: str, b: str, tolerance: float) -> bool:
    left, right = _number(a), _number(b)
    return left is not None and right is not None and close(left, right, tolerance)


def _number(word: str) -> float | None:
    """A finite number, whole numbers exactly; None for any other word."""
    if re.fullmatch(r"[-+]?\d{1,400}", word, re.ASCII):
        return int(word)
    # Nothing that was taken is given back, so that time is linear in what a program printed.
    if not re.fullmatch(r"[-+]?(?:\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?", word, re.ASCII):
        return None
    value = float(word)
    return value if math.isfinite(value) else None
