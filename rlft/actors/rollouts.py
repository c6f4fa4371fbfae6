"""The driver's view of the rollout workers: collect graded groups, publish weights, evaluate.

The driver holds ids, lengths, rewards and references, never tokens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlft.actors.deadline import answered, within
from rlft.actors.reward import Busy, held_up
from rlft.actors.rollout_worker import NUM_EXAMPLES, Collected, Tally
from rlft.actors.weights.probe import Probe
from rlft.config import RunConfig, SamplingConfig
from rlft.data.stored import file_name
from rlft.types import Example, Group, GroupRef, Sampled, Task

if TYPE_CHECKING:
    from rlft.actors.learner import Learner

STORE_S = 60.0  # a run that ends waits no longer for its last file


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
    examples: tuple[Example, ...] = ()  # a few of its answers


@dataclass(frozen=True)
class Look:
    """Says how far rollouts are, and what holds them up; "" where nothing does."""

    tally: Tally
    held_up: str = ""


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
        rewards: those of them that grade.
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
        rewards: Sequence[Any] = (),
    ) -> None:
        self.workers, self.config, self.probe, self._starting = workers, config.rollout, probe, starting
        self.helpers, self.rewards, self._model = helpers, rewards, Path(config.model).name
        self.tasks_per_step, self.last_step = config.tasks_per_step, steps_done + (config.steps if steps is None else steps)
        self._first_number, self._num_drawn, self._step = first_number, 0, steps_done
        self._numbers = itertools.count(first_number)
        self._ahead: deque[asyncio.Task[StepGroups]] = deque()
        self._asked = False  # for rollouts; before that, nothing is being stored
        self._stores = config.tracking.stores
        self._storing: asyncio.Task[None] | None = None
        self._begun_with = self._version = steps_done

    async def collect(self, tasks: Iterator[Task], temperature: float) -> StepGroups:
        """Graded groups of one step, at most `max_staleness` versions old.

        With a staleness above 0 the next steps' rollouts run while the learner updates: they are sampled at the
        temperature of the call that began them.
        """
        self._asked = True
        while not self._ahead or (len(self._ahead) <= self.config.max_staleness and self._step < self.last_step):
            self._step += 1
            self._ahead.append(asyncio.create_task(self._collect_step(tasks, self._step, temperature)))
        return await self._ahead.popleft()

    def starting(self) -> dict[str, Awaitable[Any]]:
        """Return what is to be awaited before the first rollout, by name: every engine is up and has run once, what grades is connected."""
        limit, number = self.config.timeout_s, len(self.workers)
        engines = {f"engine {i} of {number} loads {self._model}": worker for i, worker in enumerate(self.workers, start=1)}
        waits = {name: within([worker.warm_up.remote()], limit, "rollout workers (start)") for name, worker in engines.items()}
        return {"reward workers": within(self._starting, limit, "reward workers and judges (start)"), **waits}

    async def look(self, kind: Literal["collect", "evaluate"]) -> Look:
        """Tell how far the request in flight is, as far as the workers answer at once."""
        tallies: list[Tally] = await answered([worker.tally.remote(kind) for worker in self.workers])
        busy: list[Busy] = await answered([worker.busy.remote() for worker in self.rewards])
        causes = dict.fromkeys(cause for tally in tallies for cause in tally.causes)
        whole = Tally(sum(t.done for t in tallies), sum(t.failed for t in tallies), tuple(causes)[:NUM_EXAMPLES])
        return Look(whole, held_up(busy))

    async def evaluate(self, tasks: Sequence[Task], sampling: SamplingConfig, samples: int, label: str) -> list[Sampled]:
        """`samples` graded trajectories of every task, stored when this returns; `label` seeds the sampling and names the file."""
        self._asked = True
        named = [(f"{label}/{task.id}", task) for task in tasks]
        shares, version = self._share(named), self._version
        # At the beginning of a later stage the policy has been evaluated before, by other rules.
        kind = f"{label}-anew" if 0 < version == self._begun_with else label
        calls = [
            w.evaluate.remote(share, sampling, samples, self._step, kind, version)
            for w, share in zip(self.workers, shares, strict=True)
            if share
        ]
        parts = await within(calls, self.config.timeout_s, "rollout workers (evaluation)")
        if self._stores(0):
            await self._store(kind, version)
        return [sampled for part in parts for sampled in part]

    async def load_weights(self, learner: Learner, version: int) -> dict[str, float]:
        """Publish the learner's weights as `version` to every engine, and verify it.

        Returns figures of the engine that is farthest from the learner. Raises PublishError.
        """
        ours, published = await learner.publish(self.workers, version, self.probe.token_ids)
        self._version = version
        figures = [self.probe.compare(p.logprobs, ours, f"rollout worker {i}", version) for i, p in enumerate(published)]
        one = published[0]
        counts = {"publish/num_whole": one.num_whole, "publish/num_columns": one.num_columns, "publish/num_unread": one.num_unread}
        return {**max(figures, key=lambda f: f["publish/mean_diff"]), **counts}

    async def close(self, limit_s: float = STORE_S) -> None:
        """Drop rollouts in flight and wait for stored ones to reach the disk."""
        for pending in self._ahead:
            pending.cancel()
        if self._asked:
            await within([w.flush.remote() for w in self.workers], limit_s, "rollout workers (storing)")
        if self._storing is not None:
            await within([self._storing], limit_s, "rollout workers (storing)")

    def _store(self, kind: str, step: int) -> asyncio.Task[None]:
        """Have one worker make one file of what all have stored, beside what goes on. Raises what kept an earlier one from it."""
        if self._storing is not None and self._storing.done():
            self._storing.result()
        self._storing = asyncio.create_task(self._merge(file_name(kind, step), self._storing))
        return self._storing

    async def _merge(self, name: str, earlier: asyncio.Task[None] | None) -> None:
        """The tokens stay where they are: no driver reads them."""
        if earlier is not None:
            await earlier
        await within([w.flush.remote() for w in self.workers], STORE_S, "rollout workers (storing)")
        await within([self.workers[0].merge.remote(name)], STORE_S, "rollout workers (storing)")

    async def _collect_step(self, tasks: Iterator[Task], step: int, temperature: float) -> StepGroups:
        wanted = self.tasks_per_step
        collected = await self._collect_once(list(itertools.islice(tasks, wanted)), step, temperature)
        kept, dropped = split_by_signal(collected.groups) if self.config.drop_no_signal else (collected.groups, ())
        seconds = dict(collected.seconds)
        for _ in range(self.config.max_refills * self.config.drop_no_signal):
            if len(kept) >= wanted:
                break
            more = await self._collect_once(list(itertools.islice(tasks, wanted - len(kept))), step, temperature)
            fresh, empty = split_by_signal(more.groups)
            kept, dropped = kept + fresh, dropped + empty
            seconds = {name: seconds[name] + more.seconds[name] for name in seconds}
        if self._stores(step):
            self._store("step", step)
        return StepGroups(kept, seconds, dropped, temperature, self._drawn(kept + dropped), collected.examples)

    async def _collect_once(self, tasks: Sequence[Task], step: int, temperature: float) -> Collected:
        named = [(f"{next(self._numbers)}/{task.id}", task) for task in tasks]
        shares = self._share(named)
        calls = [w.collect.remote(share, step, temperature) for w, share in zip(self.workers, shares, strict=True) if share]
        parts: list[Collected] = await within(calls, self.config.timeout_s, "rollout workers")
        examples = tuple(example for part in parts for example in part.examples)[:NUM_EXAMPLES]
        return Collected(tuple(group for part in parts for group in part.groups), slowest([part.seconds for part in parts]), examples)

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
