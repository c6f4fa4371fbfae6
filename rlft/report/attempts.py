"""Several attempts at one task: what the second does to the first, by correctness alone.

The accuracy of a second attempt has two sources: how often a right first one is kept, and how often a wrong one is
mended. With CL and CS their shares, accuracy_2 = accuracy_1 * CL + (1 - accuracy_1) * CS (arXiv:2412.19513).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import fmean

from rlft.errors import ConfigError
from rlft.report.intervals import interval
from rlft.rollout.program import GIVEN, VERDICT
from rlft.types import TrajectoryInfo, TurnInfo

TAGS = ("attempt", "retry")


@dataclass(frozen=True)
class Pair:
    """The first two attempts of a trajectory."""

    task_id: str
    first: bool  # right
    second: bool
    edit: float | None  # None where no second attempt was made


def attempt_metrics(trajectories: Sequence[TrajectoryInfo], metric: str = "", threshold: float = 1.0) -> dict[str, float]:
    """Figures of a set of trajectories with several turns tagged "attempt" or "retry"; {} without such, or without verdicts on turns.

    A trajectory whose first attempt ended the episode keeps it as its second; one that a length limit cut before its
    second attempt has that one wrong. Left out are trajectories that could not be graded, or have a number that stands
    in for a verdict, and those whose first attempt was given.

    Args:
        metric: part of a turn's verdict that says how right it was; "" where there is one part only. The reward itself, which may
            be weighted and shaped, is never read: without a name for several parts there is nothing to tell, {}. Where an
            environment alone gives verdicts on turns, they are meant.
        threshold: value from which an attempt is right.

    Returns:
        `accuracy_<k>` and `truncated_<k>` of attempt k = 1, 2, ...; `delta` = accuracy_2 - accuracy_1 with `delta_low`,
        `delta_high` (95 %, clustered over tasks; absent for a lone task); `incorrect_to_correct`, `correct_to_incorrect`
        (shares of all); `kept` (CL, absent where no first attempt was right); `mended` (CS, absent where none was wrong);
        `unchanged` and `edit` over the second attempts that were made (absent for
        retries, which are compared with nothing). Shares are over trajectories.

    Raises:
        ConfigError: no part of that name.
    """
    graded = [(t, attempts) for t in trajectories if t.status != "failed" and not t.ungraded and (attempts := _attempts(t))]
    verdicts = [turn.parts for _, attempts in graded for turn in attempts]
    if not any(len(attempts) > 1 for _, attempts in graded) or not all(verdicts) or (not metric and any(len(v) > 1 for v in verdicts)):
        return {}
    right = [_right(t, attempts, metric, threshold) for t, attempts in graded]
    longest = max(map(len, right))
    by_attempt = list(zip_longest(*([*r, *[_standing(t, r)] * (longest - len(r))] for (t, _), r in zip(graded, right, strict=True))))
    made = list(zip_longest(*(attempts for _, attempts in graded)))
    pairs = [
        Pair(t.task_id, first, second, attempts[1].edit if len(attempts) > 1 else None)
        for (t, attempts), first, second in zip(graded, by_attempt[0], by_attempt[1], strict=True)
    ]
    accuracy = {f"accuracy_{k}": fmean(values) for k, values in enumerate(by_attempt, 1)}
    truncated = {f"truncated_{k}": fmean(turn.truncated for turn in turns if turn is not None) for k, turns in enumerate(made, 1)}
    return {**accuracy, **_change(pairs), **truncated}


def _attempts(trajectory: TrajectoryInfo) -> list[TurnInfo]:
    tags = [turn.tag for turn in trajectory.turns]
    return [] if GIVEN in tags else [turn for turn in trajectory.turns if turn.tag in TAGS]


def _right(trajectory: TrajectoryInfo, attempts: Sequence[TurnInfo], metric: str, threshold: float) -> list[bool]:
    for turn in attempts:
        if metric and metric not in turn.parts and set(turn.parts) != {VERDICT}:
            raise ConfigError(f"eval.metric {metric!r}: no such reward part; task {trajectory.task_id} has {sorted(turn.parts)}")
    return [(turn.parts[metric] if metric in turn.parts else next(iter(turn.parts.values()))) >= threshold for turn in attempts]


def _standing(trajectory: TrajectoryInfo, right: Sequence[bool]) -> bool:
    """Whether the answer stands as right where no further attempt was made."""
    return trajectory.status == "completed" and right[-1]


def _change(pairs: Sequence[Pair]) -> dict[str, float]:
    by_task: dict[str, list[int]] = defaultdict(list)
    for pair in pairs:
        by_task[pair.task_id].append(pair.second - pair.first)
    low, high = interval([fmean(deltas) for deltas in by_task.values()])
    kept, mended = [p.second for p in pairs if p.first], [p.second for p in pairs if not p.first]
    edits = [p.edit for p in pairs if p.edit is not None]
    return {
        "delta": fmean(p.second - p.first for p in pairs),
        **({} if math.isnan(low) else {"delta_low": low, "delta_high": high}),
        "incorrect_to_correct": fmean(p.second and not p.first for p in pairs),
        "correct_to_incorrect": fmean(p.first and not p.second for p in pairs),
        **({"kept": fmean(kept)} if kept else {}),
        **({"mended": fmean(mended)} if mended else {}),
        **({"unchanged": fmean(edit == 0 for edit in edits), "edit": fmean(edits)} if edits else {}),
    }
