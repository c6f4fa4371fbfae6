"""The driver's view of the rollout workers: collect graded groups, publish weights, evaluate.

The driver holds ids, lengths, rewards and references, never tokens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlft.actors.deadline import within
from rlft.actors.rollout_worker import Collected
from rlft.actors.weights.probe import Probe
from rlft.config import RunConfig, SamplingConfig
from rlft.types import Group, GroupRef, Sampled, Task

if TYPE_CHECKING:
    from rlft.actors.learner import Learner

STORE_S = 60.0  # a run that ends, well or not, waits no longer for its last file


@dataclass(frozen=True)
class Grading:
    """A reward worker as a rollout worker sees it."""

    worker: Any
    timeout_s: float

    async def __call__(self, groups: list[Group], step: int) -> list[Group]:
        return (await within([self.worker.grade.remote(groups, step)], self.timeout_s, "reward worker"))[0]


@dataclass(frozen=True)
class StepGroups:
    """The groups of one step."""

    groups: tuple[GroupRef, ...]
    seconds: Mapping[str, float]  # where the time of the slowest worker went
    dropped: tuple[GroupRef, ...] = ()  # left out of training because their rewards do not differ; without tokens
    temperature: float = 1.0  # that all of them were sampled at
    num_drawn: int = 0  # tasks drawn from the stream for this step and those before it


class Rollouts:
    """All rollout workers as one.

    Args:
        workers: actor handles of RolloutWorker.
        probe: what a publish is verified on.
        starting: references to wait for before the first rollout: what the workers depend on.
        steps_done: steps of the run before the next one.
        steps: how many are to come.
        first_number: of the next group. Numbers seed the sampling, so none may come twice in a run.
        helpers: actors that the workers depend on, to be ended with them.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        config: RunConfig,
        probe: Probe,
        starting: Sequence[Any] = (),
        steps_done: int = 0,
        steps: int | None = None,
        first_number: int = 0,
        helpers: Sequence[Any] = (),
    ) -> None:
        self.workers, self.config, self.probe, self._starting = workers, config.rollout, probe, starting
        self.helpers = helpers
        self.tasks_per_step, self.last_step = config.tasks_per_step, steps_done + (config.steps if steps is None else steps)
        self._first_number, self._num_drawn, self._step = first_number, 0, steps_done
        self._numbers = itertools.count(first_number)
        self._ahead: deque[asyncio.Task[StepGroups]] = deque()

    async def collect(self, tasks: Iterator[Task], temperature: float) -> StepGroups:
        """Graded groups of one step, at most `max_staleness` versions old.

        With a staleness above 0 the next steps' rollouts run while the learner updates: they are sampled at the
        temperature of the call that began them.
        """
        while not self._ahead or (len(self._ahead) <= self.config.max_staleness and self._step < self.last_step):
            self._step += 1
            self._ahead.append(asyncio.create_task(self._collect_step(tasks, self._step, temperature)))
        return await self._ahead.popleft()

    async def warm_up(self) -> None:
        """Wait until every engine is up and has run once, and what grades is connected."""
        await within(self._starting, self.config.timeout_s, "reward workers and judges (start)")
        await within([w.warm_up.remote() for w in self.workers], self.config.timeout_s, "rollout workers (start)")

    async def evaluate(self, tasks: Sequence[Task], sampling: SamplingConfig, samples: int, label: str) -> list[Sampled]:
        """`samples` graded trajectories of every task; `label` seeds the sampling."""
        named = [(f"{label}/{task.id}", task) for task in tasks]
        shares = self._share(named)
        calls = [w.evaluate.remote(share, sampling, samples, self._step) for w, share in zip(self.workers, shares, strict=True) if share]
        return [sampled for part in await within(calls, self.config.timeout_s, "rollout workers (evaluation)") for sampled in part]

    async def load_weights(self, learner: Learner, version: int) -> dict[str, float]:
        """Publish the learner's weights as `version` to every engine, and verify it.

        Returns figures of the engine that is farthest from the learner. Raises PublishError.
        """
        ours, published = await learner.publish(self.workers, version, self.probe.token_ids)
        figures = [self.probe.compare(p.logprobs, ours, f"rollout worker {i}", version) for i, p in enumerate(published)]
        one = published[0]
        counts = {"publish/num_whole": one.num_whole, "publish/num_columns": one.num_columns, "publish/num_unread": one.num_unread}
        return {**max(figures, key=lambda f: f["publish/mean_diff"]), **counts}

    async def close(self) -> None:
        """Drop rollouts in flight and wait for stored ones to reach the disk."""
        for pending in self._ahead:
            pending.cancel()
        await within([w.flush.remote() for w in self.workers], STORE_S, "rollout workers (storing)")

    async def _collect_step(self, tasks: Iterator[Task], step: int, temperature: float) -> StepGroups:
        wanted = self.tasks_per_step
        collected = await self._collect_once(list(itertools.islice(tasks, wanted)), step, temperature)
        if not self.config.drop_no_signal:
            return StepGroups(collected.groups, collected.seconds, (), temperature, self._drawn(collected.groups))
        kept, dropped = split_by_signal(collected.groups)
        seconds = dict(collected.seconds)
        for _ in range(self.config.max_refills):
            if len(kept) >= wanted:
                break
            more = await self._collect_once(list(itertools.islice(tasks, wanted - len(kept))), step, temperature)
            fresh, empty = split_by_signal(more.groups)
            kept, dropped = kept + fresh, dropped + empty
            seconds = {name: seconds[name] + more.seconds[name] for name in seconds}
        return StepGroups(kept, seconds, dropped, temperature, self._drawn(kept + dropped))

    async def _collect_once(self, tasks: Sequence[Task], step: int, temperature: float) -> Collected:
        named = [(f"{next(self._numbers)}/{task.id}", task) for task in tasks]
        shares = self._share(named)
        calls = [w.collect.remote(share, step, temperature) for w, share in zip(self.workers, shares, strict=True) if share]
        parts: list[Collected] = await within(calls, self.config.timeout_s, "rollout workers")
        return Collected(tuple(group for part in parts for group in part.groups), slowest([part.seconds for part in parts]))

    def _drawn(self, groups: Sequence[GroupRef]) -> int:
        """Tasks drawn up to the last of these groups; steps end in the order in which they began."""
        last = max(int(group.group_id.partition("/")[0]) for group in groups)
        self._num_drawn = max(self._num_drawn, last + 1 - self._first_number)
        return self._num_drawn

    def _share(self, items: Sequence[Any]) -> list[list[Any]]:
        return [list(items[i :: len(self.workers)]) for i in range(len(self.workers))]


def split_by_signal(groups: Sequence[GroupRef]) -> tuple[tuple[GroupRef, ...], tuple[GroupRef, ...]]:
    """Groups whose rewards differ, and the others without the reference to their tokens."""
    kept = tuple(group for group in groups if group.has_signal)
    return kept, tuple(replace(group, rows=None, num_tokens=0) for group in groups if not group.has_signal)


def slowest(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Where the time of the slowest of several parallel workers went."""
    return dict(max(seconds, key=lambda s: sum(s.values())))
