"""In-process stand-ins for the actors, with the same methods: a bigram policy that learns in seconds on CPU.

They run the real programs, batching and algorithms, so a user's environment, reward or
algorithm can be tried without Ray, vLLM or DeepSpeed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rlft.actors.rollout_worker import NUM_EXAMPLES, Tally, describe, example
from rlft.actors.rollouts import Look, StepGroups
from rlft.algorithms.base import Algorithm
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.config import SamplingConfig
from rlft.envs.base import EnvFn, ToolSpec
from rlft.learner.batching import collate, micro_batches
from rlft.learner.rows import to_rows
from rlft.report.screen import Phase
from rlft.rollout.program import run_group
from rlft.types import Batch, Completion, Example, Group, GroupRef, Message, Sampled, Setting, Task

Grade = Callable[[list[Group]], Awaitable[list[Group]]]
VOCABULARY = 128
END = 10  # a newline ends a message


class CharRenderer:
    """One token per ASCII character; a newline ends a message."""

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        return [ord(char) % VOCABULARY for message in messages for char in message["content"] + chr(END)]

    def extend(self, sampled_ids: Sequence[int], messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> list[int]:
        return self.render(messages)

    def target(self, text: str, messages: Sequence[Message] = (), tools: Sequence[ToolSpec] = ()) -> list[int]:
        return [ord(char) % VOCABULARY for char in text + chr(END)]

    def demonstrate(self, text: str, messages: Sequence[Message], tools: Sequence[ToolSpec] = ()) -> tuple[list[int], list[int]]:
        return self.render(messages, tools), self.target(text)

    def opened(self, prompt_ids: Sequence[int], messages: Sequence[Message]) -> str:
        return ""

    def parse(self, completion_ids: Sequence[int]) -> Message:
        return {"role": "assistant", "content": "".join(map(chr, completion_ids))}


class TinyLM(nn.Module):
    """A bigram model: the next token's logits depend on the current token only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(VOCABULARY, VOCABULARY))

    def logprobs(self, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
        """[B, T] -> [B, T], aligned with `token_ids`; column 0 is 0."""
        before = token_ids.roll(1, dims=-1)
        picked = (self.table[before] / temperature).log_softmax(-1).gather(-1, token_ids[..., None]).squeeze(-1)
        return torch.where(torch.arange(token_ids.shape[-1]) > 0, picked, 0.0)


@dataclass
class FakePolicy:
    """Samples `length` tokens from a TinyLM."""

    model: TinyLM
    length: int
    version: int
    temperature: float = 1.0

    def room(self, prompt_ids: Sequence[int]) -> int:
        return 1 << 20

    async def generate(self, prompt_ids: Sequence[int]) -> Completion:
        ids, logprobs = [prompt_ids[-1]], []
        with torch.no_grad():
            for _ in range(self.length):
                row = (self.model.table[ids[-1]] / self.temperature).log_softmax(-1)
                ids.append(int(torch.multinomial(row.exp(), 1)))
                logprobs.append(float(row[ids[-1]]))
        return Completion(ids[1:], logprobs, "stop", self.version)


class FakeRollouts:
    """Plays and grades groups in this process."""

    def __init__(
        self, model: TinyLM, make_env: EnvFn, grade: Grade, tasks_per_step: int, group_size: int, length: int = 1, max_turns: int = 1
    ) -> None:
        self.model, self.version = deepcopy(model), 0
        self.make_env, self.grade = make_env, grade
        self.tasks_per_step, self.group_size, self.length, self.max_turns = tasks_per_step, group_size, length, max_turns
        self._numbers, self.num_drawn = itertools.count(), 0

    async def collect(self, tasks: Iterator[Task], temperature: float) -> StepGroups:
        """Graded groups of one step, their rows in place of references."""
        groups = await asyncio.gather(*(self._play(next(tasks), temperature) for _ in range(self.tasks_per_step)))
        self.num_drawn += len(groups)
        examples = tuple(map(example, groups[:NUM_EXAMPLES]))
        return StepGroups(tuple(map(_ref, groups)), {"rollout": 0.0}, (), temperature, self.num_drawn, examples)

    def starting(self) -> dict[str, Awaitable[Any]]:
        """There is nothing to start."""
        return {}

    async def look(self, kind: str) -> Look:
        """It does not say how far it is."""
        return Look(Tally())

    async def close(self) -> None:
        """There is nothing in flight."""

    async def evaluate(self, tasks: Sequence[Task], sampling: SamplingConfig, samples: int, label: str) -> list[Sampled]:
        """`samples` graded trajectories of every task."""
        groups = await asyncio.gather(*(self._play(task, max(sampling.temperature, 1e-3), samples) for task in tasks))
        said = [tuple(tuple(turn.action["content"] for turn in t.turns) for t in group.trajectories) for group in groups]
        infos = [tuple(map(describe, group.trajectories)) for group in groups]
        return [Sampled(*what) for what in zip(tasks, infos, said, strict=True)]

    async def load_weights(self, learner: FakeLearner, version: int) -> dict[str, float]:
        """Copy the learner's weights."""
        self.model.load_state_dict(learner.model.state_dict())
        self.version = version
        return {}

    async def _play(self, task: Task, temperature: float, samples: int = 0) -> Group:
        policies: Any = [FakePolicy(self.model, self.length, self.version, temperature)] * (samples or self.group_size)
        renderer: Any = CharRenderer()
        group = await run_group(task, f"{next(self._numbers)}/{task.id}", self.make_env, policies, renderer, self.max_turns)
        return (await self.grade([group]))[0]


class FakeTracker:
    """Keeps the metrics of a run, and shows nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, step: int, metrics: Mapping[str, Any], examples: Sequence[Example] = ()) -> None:
        """Keep one step's."""
        self.rows.append({"step": step, **metrics})

    def phase(self, name: str, tell: bool = True) -> AbstractContextManager[Phase]:
        """Nobody is told."""
        return nullcontext(Phase(name, 0.0))


class FakeLearner:
    """Plain SGD on a TinyLM, one rank."""

    def __init__(self, model: TinyLM, lr: float, max_tokens: int = 256) -> None:
        self.model, self.reference, self.max_tokens = model, deepcopy(model), max_tokens
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    async def ready(self) -> dict[str, str]:
        """There is nothing to start, and nothing was chosen."""
        return {}

    async def save(self, folder: Path, state: bool = False) -> None:
        """The weights, and an empty folder for the state that plain SGD has not."""
        folder.mkdir(parents=True)
        save_file(self.model.state_dict(), folder / "model.safetensors")
        if state:
            (folder / "state").mkdir()

    async def update(self, groups: Sequence[GroupRef], algorithm: Algorithm, setting: Setting) -> dict[str, float]:
        """One step on all groups."""
        rows = [row for group in groups for row in group.rows]
        batch = self._annotate(collate(rows, pad_id=0), algorithm, setting)
        batch = replace(batch, pass_rates=torch.tensor([setting.pass_rates[row.group_id] for row in rows]))
        batch = algorithm.advantages(batch, _identity)
        weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, _identity, algorithm.max_length)
        self.optimizer.zero_grad()
        total = 0.0
        for micro in micro_batches(replace(batch, loss_weights=weights), self.max_tokens):
            per_token, _ = algorithm.loss(self.model.logprobs(micro.token_ids, setting.temperature), micro)
            assert micro.loss_weights is not None
            loss = weighted_sum(per_token, micro.loss_weights)
            loss.backward()
            total += loss.item()
        self.optimizer.step()
        return {"loss/policy": total}

    def _annotate(self, batch: Batch, algorithm: Algorithm, setting: Setting) -> Batch:
        models: Mapping[str, TinyLM] = {"old_logprobs": self.model, "ref_logprobs": self.reference}
        moving = {name: torch.full_like(batch.rewards, value) for name, value in setting.controls.items()}
        with torch.no_grad():
            scored = {need: models[need].logprobs(batch.token_ids, setting.temperature) for need in algorithm.needs}
        return replace(batch, **scored, **moving)


def _ref(group: Group) -> GroupRef:
    rows = [row for trajectory in group.trajectories if trajectory.status != "failed" for row in to_rows(trajectory)]
    return GroupRef(group.group_id, tuple(map(describe, group.trajectories)), rows, sum(map(len, rows)))


def _identity(x: Tensor) -> Tensor:
    return x
