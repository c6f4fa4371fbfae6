"""Judging on rlft's own engines: a vLLM engine for judges alone, and what a reward worker calls it (or the policy's) by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlft.actors.deadline import within
from rlft.actors.engine import Engine
from rlft.config import RolloutConfig, SamplingConfig
from rlft.errors import RewardError
from rlft.rewards.learned.calls import Reply
from rlft.rollout.renderer import Renderer, load_renderer
from rlft.types import Message


async def complete(
    engine: Engine, renderer: Renderer, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int
) -> Reply:
    """The engine's answer to a conversation.

    Raises:
        RewardError: the conversation fills the context.
    """
    prompt_ids = renderer.render(messages)
    if engine.room(prompt_ids) <= 0:
        raise RewardError(
            f"judge: a prompt of {len(prompt_ids)} tokens leaves no room in its max_model_len {engine.max_model_len}; "
            "raise that of the judge, or rollout.max_model_len where the policy judges"
        )
    done = await engine.generate(prompt_ids, SamplingConfig(temperature=temperature, max_tokens=max_tokens), seed)
    text = renderer.parse(done.token_ids)["content"]
    return Reply(text, done.finish_reason == "stop", len(prompt_ids) + len(done.token_ids))


class JudgeEngine:
    """A model that judges and is never trained. A plain class; runs as an asyncio Ray actor.

    Args:
        model: folder or Hub name.
        config: of its engine: max_model_len, max_num_seqs, memory, dtype, gpus, tensor_parallel_size.
        seed: the engine's.
        chat_template: file with a Jinja template; "": the model's own.
    """

    def __init__(self, model: str, config: RolloutConfig, seed: int = 0, chat_template: str = "") -> None:
        self.renderer = load_renderer(model, chat_template)
        self.engine = Engine(model, config, sorted(self.renderer.eos_ids), seed)

    async def warm_up(self) -> None:
        """Run the engine once: whoever waits for this waits for the actor's start."""
        await self.engine.generate([min(self.renderer.eos_ids)], SamplingConfig(max_tokens=2), 0)

    async def complete(self, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """An answer. Raises RewardError."""
        return await complete(self.engine, self.renderer, messages, temperature, max_tokens, seed)


class Completing:
    """Actors that complete (JudgeEngine, RolloutWorker), used in turn, as a reward worker's judges call them.

    Args:
        workers: actor handles.
        timeout_s: of one answer.
    """

    def __init__(self, workers: Sequence[Any], timeout_s: float) -> None:
        self.workers, self.timeout_s = list(workers), timeout_s
        self._turn = 0

    async def __call__(self, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """Raises RewardError, or StallError past the deadline or when the actor died."""
        self._turn += 1
        worker = self.workers[self._turn % len(self.workers)]
        answer = worker.complete.remote(list(messages), temperature, max_tokens, seed)
        return (await within([answer], self.timeout_s, "judge engine"))[0]
