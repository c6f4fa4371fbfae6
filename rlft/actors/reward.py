"""The reward worker: grades whole groups in killable processes, many callers at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlft.rewards.compose import compose, pack
from rlft.rewards.grader import Verdict
from rlft.rewards.process import GradingProcesses, Report, Request, TermInfo
from rlft.types import Group, Trajectory


class RewardWorker:
    """An asyncio actor; construct and use it on one event loop.

    Args:
        reward: a packed grader (`rlft.rewards.compose.pack`), or what `compose` takes.
        processes: grading processes of this worker.
        timeout_s: longest time the rewards of one trajectory may take together, likewise those of one group.
    """

    def __init__(self, reward: bytes | Callable[..., Any] | Mapping[Any, Any], processes: int, timeout_s: float) -> None:
        grader = reward if isinstance(reward, bytes) else pack(compose(reward))
        self._processes = GradingProcesses(grader, processes, timeout_s)
        self._graded = self._failed = 0
        self._seconds = 0.0

    async def start(self) -> None:
        """Load the rewards and start the processes; `grade` does it too. Raises RewardError."""
        await self._processes.start()

    async def grade(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with `reward`, `parts` and `feedback` of every trajectory set.

        What could not be graded comes back as `failed` with its `error`, and reward 0 means nothing there.
        Trajectories that had failed before are not graded. Turn rewards stay as the environment gave them.
        """
        started = time.perf_counter()
        terms = await self._processes.start()
        fresh = [replace(group, trajectories=tuple(map(_cleared, group.trajectories))) for group in groups]
        graded = await self._grade_each(fresh, {i: term for i, term in enumerate(terms) if not term.of_group})
        graded = await self._grade_whole(graded, {i: term for i, term in enumerate(terms) if term.of_group})
        for before, after in zip(groups, graded, strict=True):
            tried = [new for old, new in zip(before.trajectories, after.trajectories, strict=True) if old.status != "failed"]
            failed = sum(trajectory.status == "failed" for trajectory in tried)
            self._failed += failed
            self._graded += len(tried) - failed
        self._seconds += time.perf_counter() - started
        return graded

    async def stats(self) -> dict[str, float]:
        """Since the start: trajectories graded and failed, processes killed at their limit, seconds in `grade` over all calls."""
        return {"graded": self._graded, "failed": self._failed, "killed": self._processes.num_killed, "seconds": self._seconds}

    async def close(self) -> None:
        """End all grading processes."""
        await self._processes.close()

    async def _grade_each(self, groups: list[Group], terms: Mapping[int, TermInfo]) -> list[Group]:
        if not terms:
            return groups
        requests = []
        for group in groups:
            subjects = {i: trajectory for i, trajectory in enumerate(group.trajectories) if trajectory.status != "failed"}
            requests.append(Request(subjects, [(item, index) for item in subjects for index in terms]))
        reports = await self._processes.evaluate(requests)
        return [_with_own_rewards(group, report, terms) for group, report in zip(groups, reports, strict=True)]

    async def _grade_whole(self, groups: list[Group], terms: Mapping[int, TermInfo]) -> list[Group]:
        if not terms:
            return groups
        kept = [replace(group, trajectories=tuple(t for t in group.trajectories if t.status != "failed")) for group in groups]
        requests = [Request({0: group}, [(0, index) for index in terms if group.trajectories]) for group in kept]
        reports = await self._processes.evaluate(requests)
        return [_with_group_rewards(group, report, terms) for group, report in zip(groups, reports, strict=True)]


def _cleared(trajectory: Trajectory) -> Trajectory:
    return trajectory if trajectory.status == "failed" else replace(trajectory, reward=0.0, error="")


def _with_own_rewards(group: Group, report: Report, terms: Mapping[int, TermInfo]) -> Group:
    graded = []
    for item, trajectory in enumerate(group.trajectories):
        if item in report.errors:
            trajectory = _fail(trajectory, report.errors[item])
        elif trajectory.status != "failed":
            trajectory = _add(trajectory, [(term, report.verdicts[item, index][0]) for index, term in terms.items()])
        graded.append(trajectory)
    return replace(group, trajectories=tuple(graded))


def _with_group_rewards(group: Group, report: Report, terms: Mapping[int, TermInfo]) -> Group:
    graded, position = [], 0
    for trajectory in group.trajectories:
        if trajectory.status != "failed" and 0 in report.errors:
            trajectory = _fail(trajectory, report.errors[0])
        elif trajectory.status != "failed":
            trajectory = _add(trajectory, [(term, report.verdicts[0, index][position]) for index, term in terms.items()])
            position += 1
        graded.append(trajectory)
    return replace(group, trajectories=tuple(graded))


def _fail(trajectory: Trajectory, why: str) -> Trajectory:
    return replace(trajectory, status="failed", error=why, reward=0.0)


def _add(trajectory: Trajectory, given: Sequence[tuple[TermInfo, Verdict]]) -> Trajectory:
    total = trajectory.reward + sum(term.weight * value for term, (value, _) in given)
    parts = {**trajectory.parts, **{term.name: value for term, (value, _) in given}}
    said = [trajectory.feedback, *(feedback for _, (_, feedback) in given)]
    return replace(trajectory, reward=total, parts=parts, feedback="\n".join(filter(None, said)))
