"""From what a judge wrote to a verdict, and from verdicts to a value: pure functions."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal

Mode = Literal["pointwise", "pairwise", "rubric"]

ABSTAIN = "abstain"
# The last tag, with nothing but closing marks after it: one that the judge quotes on its way is not its verdict.
_VERDICT = re.compile(r"<verdict>([^<>]{1,64})</verdict>[\s.*`]*\Z", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_PREFERENCE = {"a": 1.0, "b": 0.0, "tie": 0.5}
_YES_NO = {"yes": 1.0, "no": 0.0}


def verdict_of(mode: Mode, answer: str, scale: tuple[float, float] = (1, 10)) -> float | None:
    """The value in 0..1 of the verdict tag that closes an answer.

    Pointwise: a number of the scale, its low end 0 and its high end 1. Pairwise: 1 for A, 0 for B, 0.5 for
    a tie. Rubric: 1 for yes, 0 for no. None for an abstention, no tag at the end, or anything else in it
    (a score beyond the scale is no verdict, it is not moved to the scale's end).
    """
    found = _VERDICT.search(answer)
    if found is None:
        return None
    said = found[1].strip()
    if mode != "pointwise":
        return (_PREFERENCE if mode == "pairwise" else _YES_NO).get(said.lower())
    low, high = scale
    if not _NUMBER.fullmatch(said) or not low <= float(said) <= high:
        return None
    return (float(said) - low) / (high - low)


def both_orders(first: float | None, swapped: float | None, conflict: Literal["half", "abstain"] = "half") -> float | None:
    """How well the first of two responses did in a pair that was judged in both orders.

    Args:
        first: verdict with this response as A.
        swapped: verdict with this response as B.
        conflict: what a judge's verdicts count who prefers a position: half a win, or nothing.

    Returns:
        0..1, a tie in one order halfway to what the other says. None unless there are verdicts in both orders:
        a lone one may be the position's.
    """
    if first is None or swapped is None:
        return None
    if first + swapped == 1:
        return first
    if 0.5 in (first, swapped):
        return (first + 1 - swapped) / 2
    return 0.5 if conflict == "half" else None


def pairings(count: int, opponents: int, seed: int) -> list[tuple[int, int]]:
    """Who is compared with whom, each pair once.

    Args:
        count: of responses.
        opponents: of each, drawn at random (one more for a single response where the numbers are odd); 0 for all the others.
        seed: of the draw.
    """
    if opponents == 0 or opponents >= count - 1:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    ring = random.Random(seed).sample(range(count), count)
    pairs = [(i, (i + step) % count) for step in range(1, opponents // 2 + 1) for i in range(count)]
    if opponents % 2:
        pairs += [(i, i + count // 2) for i in range((count + 1) // 2)]
    return [(ring[i], ring[j]) for i, j in pairs]


def weighted_share(verdicts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Share of a rubric's weight that is met, in 0..1. Criteria of negative weight are faults: they take away.

    Raises:
        ValueError: no criterion of positive weight.
    """
    total = math.fsum(weight for weight in weights.values() if weight > 0)
    if total <= 0:
        raise ValueError("a rubric needs a criterion with a positive weight")
    met = math.fsum(weights[criterion] * verdict for criterion, verdict in verdicts.items())
    return min(1.0, max(0.0, met / total))


def rationale(answer: str, limit: int = 400) -> str:
    """What the judge wrote before its verdict: its end, at most `limit` characters."""
    return re.sub(r"\s+", " ", _VERDICT.sub("", answer)).strip()[-limit:]


def spread(values: Sequence[float]) -> str:
    """The jurors' values where they differ, "" where they do not."""
    return f"jurors disagree: {', '.join(f'{value:g}' for value in values)}" if len(set(values)) > 1 else ""
