"""The rollout worker: plays episodes on its engine, has them graded, keeps their tokens."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from rapidfuzz.distance import Levenshtein

from rlft.actors.engine import Engine
from rlft.actors.judge_engine import complete
from rlft.actors.store import Origin, write_groups
from rlft.actors.weights.buckets import Bucket, unpack
from rlft.actors.weights.receipt import Receipt, received_wrong, refuse
from rlft.config import RunConfig, SamplingConfig
from rlft.data import stored
from rlft.envs.base import EnvFn
from rlft.errors import DataError
from rlft.learner.rows import Row, demonstration_row, pack_rows, to_rows
from rlft.rewards.learned.calls import Reply
from rlft.rollout.grading import prefixes, with_verdicts
from rlft.rollout.program import run_group
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.types import (
    EXAMPLE_CHARS,
    Completion,
    Example,
    Group,
    GroupRef,
    Message,
    Sampled,
    Source,
    Task,
    Trajectory,
    TrajectoryInfo,
    Turn,
    TurnInfo,
)

NUM_EXAMPLES = 3  # answers of a step that the driver can show
Grade = Callable[[list[Group], int], Awaitable[list[Group]]]
Played = TypeVar("Played")


@dataclass(frozen=True)
class PolicyHandle:
    """The policy as one trajectory sees it: an engine, sampling options, its own seed."""

    engine: Engine
    sampling: SamplingConfig
    seed: int

    @property
    def version(self) -> int:
        return self.engine.version

    def room(self, prompt_ids: Sequence[int]) -> int:
        return self.engine.room(prompt_ids)

    async def generate(self, prompt_ids: Sequence[int]) -> Completion:
        return await self.engine.generate(prompt_ids, self.sampling, self.seed + len(prompt_ids))


@dataclass(frozen=True)
class Collected:
    """What a worker returns for a request: everything but tokens, and where its time went."""

    groups: tuple[GroupRef, ...]
    seconds: Mapping[str, float]  # rollout: until the last completion; reward: from there until graded; store
    examples: tuple[Example, ...] = ()


@dataclass
class Tally:
    """Says how far a request is: trajectories that were graded, those of them without a verdict, and the first reasons."""

    done: int = 0
    failed: int = 0
    causes: tuple[str, ...] = ()

    def add(self, group: Group) -> None:
        lost = [t for t in group.trajectories if t.status == "failed" or t.ungraded]
        self.done, self.failed = self.done + len(group.trajectories), self.failed + len(lost)
        self.causes = tuple(dict.fromkeys([*self.causes, *(t.error for t in lost)]))[:NUM_EXAMPLES]


@dataclass(frozen=True)
class Published:
    """What a worker found of the weights that it took."""

    logprobs: list[list[float]]  # of the probe
    num_whole: int  # tensors of which every bit was compared where the engine computes
    num_columns: int  # of which sampled columns were
    num_unread: int  # of which nothing was


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
        needs: of the algorithm; "baselines" and "demonstrations" are made here.
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
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.config, self.make_env, self.graders, self.put = config, make_env, graders, put
        self.folder, self.index, self.needs = folder, index, needs
        self.seed = config.seed if config.rollout.seed is None else config.rollout.seed
        self.renderer = load_renderer(config.model, config.chat_template)
        self.engine = Engine(config.model, config.rollout, sorted(self.renderer.eos_ids), self.seed + index, transfer)
        self._graded, self._last_sampled = 0, 0.0
        self._tallies = {"collect": Tally(), "evaluate": Tally()}  # of the last request of each kind
        self._writing: asyncio.Future[None] | None = None
        self._num_parts, self._components = 0, frozenset[str]()

    async def warm_up(self) -> None:
        """Run the engine once at full width, so that no timed step pays for compilation."""
        sampling = SamplingConfig(max_tokens=2)
        prompt = [min(self.renderer.eos_ids)]
        answers = (self.engine.generate(prompt, sampling, seed) for seed in range(self.config.rollout.max_num_seqs))
        await asyncio.gather(asyncio.to_thread(import_module, "pyarrow.parquet"), *answers)  # what stores rollouts takes a second to load
        await self.engine.logprobs(prompt * 8)

    async def collect(self, tasks: Sequence[tuple[str, Task]], step: int, temperature: float) -> Collected:
        """Play and grade a group of trajectories for each (group id, task), sampled at `temperature`."""
        config = self.config.rollout.model_copy(update={"temperature": temperature})
        tally = self._tallies["collect"] = Tally()

        async def play(group_id: str, task: Task) -> tuple[Group, GroupRef]:
            playing = [self._play(group_id, task, config, config.group_size, step)]
            if "baselines" in self.needs:  # one greedy answer to the task and to each variant, as a group of its own
                greedy = SamplingConfig(temperature=0.0, max_tokens=config.max_tokens, stop=config.stop)
                playing.append(self._play(group_id, task, greedy, 1 + len(task.variants), step))
            group, *others = await asyncio.gather(*playing)
            tally.add(group)
            baselines = [math.nan]
            for other in others:
                group, baselines = with_baselines(group, other)
            rows = group_rows(group, baselines, self.renderer if "demonstrations" in self.needs else None)
            return group, self._ref(group, rows)

        kept, seconds = await self._timed(play, tasks)
        started = time.perf_counter()
        if self.config.tracking.stores(step):
            await self._store([group for group, _ in kept], Origin(self.config.run_dir, self.config.model, "step", step, self.index))
        seconds["store"] = time.perf_counter() - started
        return Collected(tuple(ref for _, ref in kept), seconds, tuple(example(group) for group, _ in kept[:NUM_EXAMPLES]))

    async def evaluate(
        self, tasks: Sequence[tuple[str, Task]], sampling: SamplingConfig, samples: int, step: int, kind: str, version: int
    ) -> list[Sampled]:
        """Play and grade `samples` trajectories of each (seed label, task); the driver learns all but their tokens.

        They are stored as of `kind` ("eval", "greedy" or "first") and of step `version`.
        """
        tally = self._tallies["evaluate"] = Tally()

        async def play(label: str, task: Task) -> tuple[Group, Sampled]:
            group = await self._play(label, task, sampling, samples, step)
            tally.add(group)
            said = tuple(tuple(turn.action.get("content") or "" for turn in t.turns) for t in group.trajectories)
            shown = tuple(tuple(self.renderer.readable(turn.completion.token_ids) for turn in t.turns) for t in group.trajectories)
            return group, Sampled(task, tuple(map(describe, group.trajectories)), said, shown)

        played = (await self._timed(play, tasks))[0]
        if self.config.tracking.stores(0):
            await self._store([group for group, _ in played], Origin(self.config.run_dir, self.config.model, kind, version, self.index))
        return [sampled for _, sampled in played]

    async def tally(self, kind: str) -> Tally:
        """Tell how far the last "collect" or "evaluate" is."""
        return self._tallies[kind]

    async def complete(self, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """An answer of the policy as it is now, for a judge. Raises RewardError."""
        return await complete(self.engine, self.renderer, messages, temperature, max_tokens, seed)

    async def load_weights(self, receipt: Receipt, probe: Sequence[Sequence[int]], *buckets: Bucket) -> Published:
        """Take new weights from memory, and verify them. Raises PublishError."""
        weights = [item for bucket in buckets for item in unpack(bucket)]
        refuse(received_wrong(receipt, weights), len(receipt.tensors), f"rollout worker {self.index}", receipt.version)
        await self.engine.load_weights(weights, receipt.version)
        return await self._verify(receipt, probe)

    async def probe_logprobs(self, probe: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of fixed sequences under the engine's weights."""
        return list(await asyncio.gather(*(self.engine.logprobs(ids) for ids in probe)))

    async def weight_transfer(self, method: str, *args: Any) -> None:
        """One step of a transfer by vLLM's own engines (GPU): a method of its workers."""
        await self.engine.transfer(method, *args)

    async def weights_transferred(self, receipt: Receipt, probe: Sequence[Sequence[int]]) -> Published:
        """Note that a transfer brought new weights, and verify them. Raises PublishError."""
        await self.engine.forget_prefixes(receipt.version)
        return await self._verify(receipt, probe)

    async def _verify(self, receipt: Receipt, probe: Sequence[Sequence[int]]) -> Published:
        verdict = await self.engine.verify(receipt)
        verdict.require(len(receipt.tensors), f"rollout worker {self.index}", receipt.version)
        return Published(await self.probe_logprobs(probe), verdict.num_whole, verdict.num_columns, len(verdict.unread))

    async def flush(self) -> None:
        """Wait until the parts that this worker stores are on disk."""
        if self._writing is not None:
            await self._writing

    async def merge(self, name: str) -> None:
        """Make one file of the parts that all workers have stored of a step, or of an evaluation."""
        self._components = await asyncio.to_thread(stored.merge, self.folder, name, self._components)

    async def _timed(
        self, play: Callable[[str, Task], Awaitable[Played]], tasks: Sequence[tuple[str, Task]]
    ) -> tuple[list[Played], dict[str, float]]:
        """All tasks at once, each graded as soon as it is played; with the seconds until the last was sampled, and from there."""
        started = self._last_sampled = time.perf_counter()
        played = await asyncio.gather(*(play(group_id, task) for group_id, task in tasks))
        return list(played), {"rollout": self._last_sampled - started, "reward": time.perf_counter() - self._last_sampled}

    async def _play(self, group_id: str, task: Task, sampling: SamplingConfig, samples: int, step: int) -> Group:
        """One graded group: on its trajectories' ends, or with `reward_pool.per_turn` on every turn."""
        policies = [PolicyHandle(self.engine, sampling, self._trajectory_seed(group_id, i)) for i in range(samples)]
        group = await run_group(task, group_id, self.make_env, policies, self.renderer, self.config.rollout.max_turns)
        self._last_sampled = time.perf_counter()
        if not self.config.reward_pool.per_turn:
            return (await self._next_grader()([group], step))[0]
        return with_verdicts(group, await self._next_grader()(prefixes(group), step))

    def _trajectory_seed(self, group_id: str, index: int) -> int:
        return zlib.crc32(f"{self.seed}/{group_id}/{index}".encode())

    def _next_grader(self) -> Grade:
        self._graded += 1
        return self.graders[self._graded % len(self.graders)]

    async def _store(self, groups: list[Group], origin: Origin) -> None:
        """Write a part beside what goes on."""
        await self.flush()
        self._num_parts += 1
        name = stored.file_name(origin.kind, origin.step)
        path = self.folder / stored.PARTS / name / f"{self.index:04d}-{self._num_parts:06d}.parquet"
        seed_of = self._trajectory_seed if self.config.rollout.seeded else lambda group_id, index: None
        self._writing = asyncio.ensure_future(asyncio.to_thread(write_groups, path, groups, self.renderer, origin, seed_of))

    def _ref(self, group: Group, rows: Sequence[Row]) -> GroupRef:
        return GroupRef(
            group_id=group.group_id,
            trajectories=tuple(map(describe, group.trajectories)),
            rows=self.put(pack_rows(rows)) if rows else None,
            num_tokens=sum(map(len, rows)),
        )


def with_baselines(group: Group, greedy: Group) -> tuple[Group, list[float]]:
    """The group, and for each of its trajectories what the greedy answer to the same way of putting the task earned.

    Where that could not be graded, the trajectories have nothing to be compared with: they are failed too.
    """
    ways = [greedy.trajectories[i % len(greedy.trajectories)] for i in range(len(group.trajectories))]
    trajectories = tuple(
        replace(t, status="failed", error=f"the greedy answer: {way.error}") if way.status == "failed" and t.status != "failed" else t
        for t, way in zip(group.trajectories, ways, strict=True)
    )
    return replace(group, trajectories=trajectories), [way.outcome for way in ways]


def group_rows(group: Group, baselines: Sequence[float], demonstrator: Renderer | None) -> list[Row]:
    """Token rows of a group's graded trajectories; with a demonstrator one more, the task's answer as a trajectory of its own.

    Args:
        baselines: one for each trajectory, or one for all.
        demonstrator: renders the task and its answer.

    Raises:
        DataError: a demonstration of a task without an answer.
    """
    graded = [(t, baselines[i % len(baselines)]) for i, t in enumerate(group.trajectories) if t.status != "failed"]
    rows = [row for trajectory, baseline in graded for row in to_rows(trajectory, baseline)]
    if demonstrator is None or not rows:
        return rows
    task = group.trajectories[0].task
    if task.answer is None:
        raise DataError(f"task {task.id} has no answer to demonstrate; name its field in data.answer")
    prompt, target = demonstrator.demonstrate(str(task.answer), task.messages)
    return [*rows, demonstration_row(prompt, target, group.group_id, len(group.trajectories))]


def example(group: Group) -> Example:
    """The group's first trajectory for a person to look at."""
    first = group.trajectories[0]
    asked = first.task.messages[-1].get("content") if first.task.messages else ""
    return Example(str(asked)[-EXAMPLE_CHARS:], first.text[-EXAMPLE_CHARS:], first.status == "truncated", first.outcome, dict(first.parts))


def describe(trajectory: Trajectory) -> TrajectoryInfo:
    """A trajectory without its tokens."""
    turns, told = trajectory.turns, describe_turns(trajectory.turns)
    return TrajectoryInfo(
        task_id=trajectory.task.id,
        status=trajectory.status,
        outcome=trajectory.outcome,
        parts=dict(trajectory.parts),
        num_prompt=len(turns[0].prompt_ids) if turns else 0,
        num_sampled=sum(turn.num_sampled for turn in told),
        policy_version=min((turn.completion.policy_version for turn in turns), default=0),
        turns=told,
        error=trajectory.error,
        ungraded=dict(trajectory.ungraded),
    )


def describe_turns(turns: Sequence[Turn]) -> tuple[TurnInfo, ...]:
    """The turns without their tokens, each compared with the one of the same tag before it."""
    last: dict[str, str] = {}
    told: list[TurnInfo] = []
    for turn in turns:
        text, completion = turn.action.get("content") or "", turn.completion
        edit = Levenshtein.normalized_distance(last[turn.tag], text) if turn.tag in last else None
        sampled = sum(source == Source.POLICY for source in turn.sources[len(turn.prompt_ids) :])
        told.append(TurnInfo(turn.tag, turn.reward, dict(turn.parts), sampled, completion.finish_reason == "length", edit))
        last[turn.tag] = text
    return tuple(told)
