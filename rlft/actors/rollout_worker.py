"""The rollout worker: plays episodes on its engine, has them graded, keeps their tokens."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlft.actors.buckets import Bucket, unpack
from rlft.actors.engine import Engine
from rlft.actors.judge_engine import complete
from rlft.actors.store import write_groups
from rlft.config import RunConfig, SamplingConfig
from rlft.envs.base import EnvFn
from rlft.rewards.learned.calls import Reply
from rlft.rollout.program import run_group
from rlft.rollout.renderer import load_renderer
from rlft.rows import pack_rows, to_rows
from rlft.types import Completion, Group, GroupRef, Message, Task, Trajectory, TrajectoryInfo

Grade = Callable[[list[Group], int], Awaitable[list[Group]]]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class PolicyHandle:
    """The policy as one trajectory sees it: an engine, sampling options, its own seed."""

    engine: Engine
    sampling: SamplingConfig
    seed: int

    def room(self, prompt_ids: Sequence[int]) -> int:
        return self.engine.room(prompt_ids)

    async def generate(self, prompt_ids: Sequence[int]) -> Completion:
        return await self.engine.generate(prompt_ids, self.sampling, self.seed + len(prompt_ids))


@dataclass(frozen=True)
class Collected:
    """What a worker returns for a request: everything but tokens, and where its time went."""

    groups: tuple[GroupRef, ...]
    seconds: Mapping[str, float]  # rollout: until the last completion; reward: from there until graded; store
    dropped: tuple[GroupRef, ...] = ()  # groups left out of training because their rewards do not differ


@dataclass(frozen=True)
class Sampled:
    """What an evaluation learns of one task: what was said and what it earned."""

    task: Task
    trajectories: tuple[TrajectoryInfo, ...]
    texts: tuple[str, ...]  # the last thing said in each


class RolloutWorker:
    """One engine with its episodes. A plain class; runs as an asyncio Ray actor.

    Args:
        config: the run.
        make_env: builds an environment from a task.
        graders: one `grade(groups, step) -> groups` call per reward worker; used in turn.
        put: keeps a value for the learner ranks and returns a reference to it.
        folder: where stored rollouts go.
        index: which worker this is.
        transfer: vLLM's weight-transfer backend, None for weights through memory.
    """

    def __init__(
        self,
        config: RunConfig,
        make_env: EnvFn,
        graders: Sequence[Grade],
        put: Callable[[Any], Any],
        folder: Path,
        index: int,
        transfer: str | None,
    ) -> None:
        self.config, self.make_env, self.graders, self.put = config, make_env, graders, put
        self.folder, self.index = folder, index
        self.seed = config.seed if config.rollout.seed is None else config.rollout.seed
        self.renderer = load_renderer(config.model, config.chat_template)
        self.engine = Engine(config.model, config.rollout, sorted(self.renderer.eos_ids), self.seed + index, transfer)
        self._graded = 0
        self._writing: asyncio.Future[None] | None = None

    async def warm_up(self) -> None:
        """Run the engine once at full width, so that no timed step pays for compilation."""
        sampling = SamplingConfig(max_tokens=2)
        prompt = [min(self.renderer.eos_ids)]
        await asyncio.gather(*(self.engine.generate(prompt, sampling, seed) for seed in range(self.config.rollout.max_num_seqs)))
        await self.engine.logprobs(prompt * 8)

    async def collect(self, tasks: Sequence[tuple[str, Task]], step: int) -> Collected:
        """Play and grade a group of trajectories for each (group id, task)."""
        config = self.config.rollout

        def keep(group: Group) -> tuple[Group, GroupRef]:
            return group, self._ref(group)

        kept, seconds = await self._play(tasks, config, config.group_size, step, keep)
        started = time.perf_counter()
        every = self.config.tracking.rollouts_every
        if every and step % every == 0:
            await self._store([group for group, _ in kept], step)
        return Collected(tuple(ref for _, ref in kept), {**seconds, "store": time.perf_counter() - started})

    async def evaluate(self, tasks: Sequence[tuple[str, Task]], sampling: SamplingConfig, samples: int, step: int) -> list[Sampled]:
        """Play and grade `samples` trajectories of each (seed label, task), without keeping their tokens."""

        def keep(group: Group) -> tuple[tuple[TrajectoryInfo, ...], tuple[str, ...]]:
            return tuple(map(describe, group.trajectories)), tuple(t.text for t in group.trajectories)

        kept, _ = await self._play(tasks, sampling, samples, step, keep)
        return [Sampled(task, *what) for (_, task), what in zip(tasks, kept, strict=True)]

    async def complete(self, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """An answer of the policy as it is now, for a judge. Raises RewardError."""
        return await complete(self.engine, self.renderer, messages, temperature, max_tokens, seed)

    async def load_weights(self, version: int, probe: Sequence[Sequence[int]], *buckets: Bucket) -> list[list[float]]:
        """Take new weights from memory; returns the probe's log-probabilities under them."""
        weights = [item for bucket in buckets for item in unpack(bucket)]
        await self.engine.load_weights(weights, version)
        return await self.probe_logprobs(probe)

    async def probe_logprobs(self, probe: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of fixed sequences under the engine's weights."""
        return list(await asyncio.gather(*(self.engine.logprobs(ids) for ids in probe)))

    async def weight_transfer(self, method: str, *args: Any) -> None:
        """One step of a transfer by vLLM's own engines (GPU): a method of its workers."""
        await self.engine.transfer(method, *args)

    async def weights_transferred(self, version: int, probe: Sequence[Sequence[int]]) -> list[list[float]]:
        """Note that a transfer brought `version`; returns the probe's log-probabilities."""
        await self.engine.forget_prefixes(version)
        return await self.probe_logprobs(probe)

    async def flush(self) -> None:
        """Wait until the stored rollouts are on disk."""
        if self._writing is not None:
            await self._writing

    async def _play(
        self, tasks: Sequence[tuple[str, Task]], sampling: SamplingConfig, samples: int, step: int, keep: Callable[[Group], Kept]
    ) -> tuple[list[Kept], dict[str, float]]:
        """What `keep` makes of every graded group, each as soon as it is graded, while others are still sampled."""
        started = last_sampled = time.perf_counter()

        async def play(group_id: str, task: Task) -> Kept:
            nonlocal last_sampled
            policies = [PolicyHandle(self.engine, sampling, self._trajectory_seed(group_id, i)) for i in range(samples)]
            group = await run_group(task, group_id, self.make_env, policies, self.renderer, self.config.rollout.max_turns)
            last_sampled = time.perf_counter()
            return keep((await self._next_grader()([group], step))[0])

        kept = await asyncio.gather(*(play(group_id, task) for group_id, task in tasks))
        return list(kept), {"rollout": last_sampled - started, "reward": time.perf_counter() - last_sampled}

    def _trajectory_seed(self, group_id: str, index: int) -> int:
        return zlib.crc32(f"{self.seed}/{group_id}/{index}".encode())

    def _next_grader(self) -> Grade:
        self._graded += 1
        return self.graders[self._graded % len(self.graders)]

    async def _store(self, groups: list[Group], step: int) -> None:
        await self.flush()
        first_group = groups[0].group_id.partition("/")[0]
        path = self.folder / f"step-{step:06d}-group-{first_group}.parquet"
        self._writing = asyncio.ensure_future(asyncio.to_thread(write_groups, path, groups, self.renderer, step))

    def _ref(self, group: Group) -> GroupRef:
        graded = [t for t in group.trajectories if t.status != "failed"]
        rows = [row for trajectory in graded for row in to_rows(trajectory)]
        return GroupRef(
            group_id=group.group_id,
            trajectories=tuple(map(describe, group.trajectories)),
            rows=self.put(pack_rows(rows)) if rows else None,
            num_tokens=sum(map(len, rows)),
        )


def describe(trajectory: Trajectory) -> TrajectoryInfo:
    """A trajectory without its tokens."""
    turns = trajectory.turns
    return TrajectoryInfo(
        task_id=trajectory.task.id,
        status=trajectory.status,
        outcome=trajectory.outcome,
        parts=dict(trajectory.parts),
        num_prompt=len(turns[0].prompt_ids) if turns else 0,
        num_sampled=trajectory.num_sampled,
        num_turns=len(turns),
        policy_version=min((turn.completion.policy_version for turn in turns), default=0),
        error=trajectory.error,
        ungraded=dict(trajectory.ungraded),
    )
