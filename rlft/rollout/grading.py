"""Verdicts on every turn: what a reward function sees of a turn, and where its verdicts go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlft.types import Group, Trajectory


def prefixes(group: Group) -> list[Group]:
    """For each turn index k the group as it was after that turn, for a reward function to grade.

    Group k holds the trajectories that have a turn k, cut after it, so a reward of whole groups compares equal
    turns. A conversation that went on was "completed" up to there. Failed trajectories are left out.
    """
    played = [t for t in group.trajectories if t.status != "failed"]
    longest = max((len(t.turns) for t in played), default=0)
    return [replace(group, trajectories=tuple(_cut(t, k) for t in played if len(t.turns) > k)) for k in range(longest)]


def _cut(trajectory: Trajectory, k: int) -> Trajectory:
    if k == len(trajectory.turns) - 1:
        return trajectory
    return replace(trajectory, turns=trajectory.turns[: k + 1], status="completed", feedback="")


def with_verdicts(group: Group, graded: Sequence[Group]) -> Group:
    """The group with the verdicts on its prefixes, in order of turns.

    A verdict is added to its turn's reward, and its parts become the turn's. The trajectory's own reward is 0, its
    parts and feedback are those of its last turn. One ungradable turn fails the trajectory.
    """
    verdicts: dict[int, list[Trajectory]] = {t.index: [] for t in group.trajectories}
    for prefix in graded:
        for verdict in prefix.trajectories:
            verdicts[verdict.index].append(verdict)
    return replace(group, trajectories=tuple(_judged(t, verdicts[t.index]) for t in group.trajectories))


def _judged(trajectory: Trajectory, verdicts: Sequence[Trajectory]) -> Trajectory:
    if trajectory.status == "failed":
        return trajectory
    ungraded = {name: cause for verdict in verdicts for name, cause in verdict.ungraded.items()}
    failed = next((verdict for verdict in verdicts if verdict.status == "failed"), None)
    if failed is not None:
        error = f"turn {len(failed.turns)}: {failed.error}"
        return replace(trajectory, status="failed", error=error, ungraded=ungraded)
    turns = tuple(
        replace(turn, reward=turn.reward + verdict.reward, parts=verdict.parts)
        for turn, verdict in zip(trajectory.turns, verdicts, strict=True)
    )
    last = verdicts[-1]
    error = next((verdict.error for verdict in verdicts if verdict.error), "")
    return replace(trajectory, turns=turns, reward=0.0, parts=last.parts, feedback=last.feedback, ungraded=ungraded, error=error)
