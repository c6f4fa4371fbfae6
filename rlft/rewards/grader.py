"""A grader is a tuple of weighted reward functions; here is what they may return."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlft.errors import RewardError

Verdict = tuple[float, str]  # raw value, feedback


@dataclass(frozen=True)
class Term:
    """One reward of the sum."""

    name: str  # of its part
    fn: Callable[..., Any]  # (task, trajectory), or (group) where `of_group`
    weight: float
    of_group: bool


Grader = tuple[Term, ...]


def verdicts(term: Term, returned: Any, count: int) -> list[Verdict]:
    """What a reward returned as one verdict per graded trajectory, `count` of them.

    A value is a finite number (True and False count as 1 and 0, numpy scalars are numbers), or
    a pair (number, feedback text). A group reward returns one value per trajectory.

    Raises:
        RewardError: anything else; the message names the reward, what it returned and what was expected.
    """
    if not term.of_group:
        return [_verdict(term.name, returned, "")]
    if isinstance(returned, (str, bytes, Mapping)) or not hasattr(returned, "__len__"):
        raise RewardError(f"reward {term.name!r} returned {_short(returned)}; expected a list of {count} finite numbers")
    if len(returned) != count:
        raise RewardError(f"reward {term.name!r} returned {len(returned)} values; expected {count}, one per trajectory of the group")
    return [_verdict(term.name, value, f" for trajectory {i} of its group") for i, value in enumerate(returned)]


def _verdict(name: str, returned: Any, where: str) -> Verdict:
    value, feedback = returned, ""
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], str):
        value, feedback = returned
    number = math.nan
    if not isinstance(value, (str, bytes)) and hasattr(type(value), "__float__") and getattr(value, "ndim", 0) == 0:
        number = float(value)
    if not math.isfinite(number):
        raise RewardError(f"reward {name!r} returned {_short(returned)}{where}; expected a finite number")
    return number, feedback


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
