"""Quantities: a number with its unit, compared after conversion."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pint

from rlft.errors import TaskError
from rlft.rewards.extract import final, gold, last_boxed, short
from rlft.types import Task, Trajectory

MAX_FACTORS = 8  # of a unit
MAX_EXPONENT = 12

_UNITS = pint.UnitRegistry(cache_folder=None)
_NONE = _UNITS.Unit("")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)\]^}}])[-+])?(?<![\w^])(?P<digits>{_DIGITS})(?:[eE](?P<e>[-+]?\d{{1,6}}))?"
    rf"(?P<times>\s?[x*\u00d7\u00b7]\s?10(?=\s?\^))?(?:\s?\^\s?\{{?(?P<power>[-+]?\d{{1,6}})\}}?)?"
    rf"(?:\s?/\s?(?P<below>{_DIGITS}))?",
    re.ASCII,
)
_FACTOR = re.compile(
    r"(?P<op>[ \t]{0,3}(?:\*\*?|\u00b7|\u00d7|/|\bper\b)[ \t]{0,3}|[ \t]{0,3})(?P<open>\()?"
    r"(?P<word>[A-Za-z\u03bc\u03a9\u00b0%\u2103\u00c5]{1,30})(?:\s?(?:\^|\*\*)\s?\{?(?P<raised>[-+]?\d{1,3})\}?|(?P<shift>[-+]?\d)(?![\d.]))?(?P<close>\))?"
)
_A_WORD = re.compile(r"[ \t]{1,3}[A-Za-z]")
_SUPERSCRIPT = re.compile("[\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,6}")
_FROM_SUPERSCRIPT = str.maketrans("\u207a\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079", "+-0123456789")
_LATEX = (
    (re.compile(r"\\(?:text|mathrm|operatorname|mathit|rm|si|unit)\s{0,3}\{((?:[^{}]|\{[^{}]*\})*+)\}"), r" \1 "),
    (re.compile(r"\^\s?\{?\s?\\circ\s?\}?"), "\u00b0"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])"), "\u00d7"),
    (re.compile(r"\\mu(?![A-Za-z])"), "\u03bc"),
    (re.compile(r"\\Omega(?![A-Za-z])"), "\u03a9"),
    (re.compile(r"\\(?:[,;:! ]|quad|qquad)|~"), " "),
    (re.compile(r"\\%"), "%"),
)
_NOT_ALONE = re.compile(r"a|an|and|are|as|at|for|from|of|or|so|the|to|by|on|is|I|we|am|pm|us")  # words rather than units


@dataclass(frozen=True)
class Quantity:
    """A number and its unit."""

    value: float
    unit: Any  # a pint unit
    has_unit: bool
    end: int  # where it ends in the text it was read from


def quantity(
    task: Task, trajectory: Trajectory, *, rel_tol: float = 1e-6, abs_tol: float = 0.0, assume_unit: bool = False
) -> tuple[float, str]:
    r"""1 if the last quantity said is the answer's, converted to the answer's unit; else 0. Another dimension is wrong.

    Reads the last \boxed{...} of the final answer if there is one. There the last number with a unit counts, or, if the answer
    has no unit, the last number. Units are what pint knows ("km/h", "kg m^2 s^-2", "degC", "%"), one after another
    or with * / ^ and "per"; each division is of the next factor alone, or of a pair of parentheses.

    Args:
        rel_tol: largest difference as a share of the answer.
        abs_tol: largest difference in the answer's unit.
        assume_unit: whether a last number without any unit is read in the answer's unit.

    Raises:
        TaskError: the answer (with `task.meta["unit"]`, or as {"value", "unit"}) is no number with a unit that pint knows.
    """
    wanted = _gold(task)
    text = final(trajectory)
    boxed = last_boxed(text)
    found = list(quantities(text if boxed is None else boxed))
    with_unit = [item for item in found if item.has_unit]
    last = (with_unit or (found if assume_unit else []))[-1:] if wanted.has_unit else found[-1:]
    if not last:
        return 0.0, "no number" if not found else "no unit"
    value = last[0].value
    if last[0].has_unit or not assume_unit:
        try:
            value = _UNITS.Quantity(last[0].value, last[0].unit).to(wanted.unit).magnitude
        except (pint.PintError, OverflowError) as error:
            return 0.0, f"cannot be converted to {wanted.unit or 'a plain number'}: {short(str(error), 120)}"
    close = math.isclose(value, wanted.value, rel_tol=rel_tol, abs_tol=abs_tol)
    return float(close), "" if close else f"read as {value:g} {wanted.unit:~}".strip()


def quantities(text: str) -> Iterator[Quantity]:
    """The quantities in a text, in order. Time is linear in the text; pint sees single words of letters only."""
    text = _plain(text)
    place = 0
    while (match := _NUMBER.search(text, place)) is not None:
        value = _value(match)
        unit, place = _unit(text, match.end())
        if value is not None:
            yield Quantity(value, _NONE if unit is None else unit, unit is not None, place)


def _plain(text: str) -> str:
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_FROM_SUPERSCRIPT), text)
    return text.replace("\u2212", "-").replace("\u00b5", "\u03bc").replace("\u2126", "\u03a9").replace("\u212b", "\u00c5")


def _value(match: re.Match[str]) -> float | None:
    """The number, or None where it is none: an unevaluated power, a division by zero, beyond a float's range."""
    digits, exponent = match["digits"].replace(",", ""), int(match["e"] or 0)
    if match["power"] is not None:
        if match["times"] is None and digits != "10":
            return None
        exponent += int(match["power"])
        digits = "1" if match["times"] is None else digits
    value = float(f"{match['sign'] or ''}{digits}e{exponent}")
    below = float(match["below"].replace(",", "")) if match["below"] else 1.0
    return value / below if below and math.isfinite(value) and math.isfinite(below) else None


def _unit(text: str, start: int) -> tuple[Any, int]:
    """The unit that stands at `start`, None if none does, and where it ends."""
    product, place, inside = None, start, 0
    for _ in range(MAX_FACTORS):
        match = _FACTOR.match(text, place)
        if match is None:
            break
        op = match["op"].strip()
        unit = _known(match["word"])
        exponent = int(match["raised"] or match["shift"] or 1)
        follows = _A_WORD.match(text, match.end())
        is_word = not op and (_NOT_ALONE.fullmatch(match["word"]) or (match["word"] == "in" and (product is not None or follows)))
        if unit is None or abs(exponent) > MAX_EXPONENT or is_word or (product is None and op not in ("", "/", "per")):
            break
        if match["open"]:
            inside = -1 if op in ("/", "per") else 1
        sign = inside or (-1 if op in ("/", "per") else 1)
        product = (_NONE if product is None else product) * unit ** (sign * exponent)
        inside = 0 if match["close"] else inside
        place = match.end()
    return product, place


@functools.lru_cache(maxsize=4096)
def _known(word: str) -> Any:
    """pint's unit of one word, None if there is none."""
    for spelled in (word, word.lower() if len(word) > 3 else word):
        unit: Any = None
        try:
            unit = _UNITS.parse_units(spelled, as_delta=False)
        except (pint.PintError, AttributeError, ValueError, TypeError, KeyError):
            continue
        return unit
    return None


def _gold(task: Task) -> Quantity:
    answer = gold(task, "quantity")
    value, unit = (answer.get("value"), answer.get("unit")) if isinstance(answer, Mapping) else (answer, task.meta.get("unit"))
    text = f"{value} {unit or ''}"
    found = list(quantities(text))
    if len(found) != 1 or _plain(text)[found[0].end :].strip(" .$)"):
        raise TaskError(
            f"quantity: {short(text.strip())} of task {task.id!r} is not one number with a unit that pint knows, such as '3.5 km/h'"
        )
    return found[0]


def conversion(said: str, expected: str) -> float | None:
    """By what a number in one unit is multiplied to be one in the other; None where pint does not know both, of one dimension."""
    unit, other = (_only_unit(f"1 {unit}") for unit in (said, expected))
    if unit is None or other is None or not unit.is_compatible_with(other):
        return None
    one, two = (_UNITS.Quantity(number, unit).to(other).magnitude for number in (1.0, 2.0))
    return float(one) if math.isclose(two, 2 * one) else None  # degrees of temperature have no factor


def _only_unit(text: str) -> Any:
    """The unit of a text that is one quantity, None of another."""
    found = list(quantities(text))
    return found[0].unit if len(found) == 1 and found[0].has_unit and not _plain(text)[found[0].end :].strip() else None
