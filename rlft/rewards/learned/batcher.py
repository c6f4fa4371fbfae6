"""Dynamic batching: sequences of concurrent calls meet in length-sorted batches on one thread that owns the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rlft.errors import RewardError


@dataclass(frozen=True)
class Sequenced:
    """One token sequence, and where in it to read: what "where" means is the model's affair."""

    token_ids: Sequence[int]
    where: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class _Waiting:
    sequence: Sequenced
    answer: asyncio.Future[Any]


class Batcher:
    """Use it on one event loop.

    Args:
        load: makes the function that answers a batch, [B] sequences -> [B] answers; both run on the model's thread.
        max_tokens: padded tokens of one batch, at most; a longer sequence stands alone.
    """

    def __init__(self, load: Callable[[], Callable[[Sequence[Sequenced]], Sequence[Any]]], max_tokens: int) -> None:
        self._load, self._max_tokens = load, max_tokens
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._answer: Callable[[Sequence[Sequenced]], Sequence[Any]] | None = None
        self._waiting: list[_Waiting] = []
        self._drain: asyncio.Task[None] | None = None
        self.num_batches = 0

    async def start(self) -> None:
        """Load the model. What loading raises is raised here."""
        self._answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def submit(self, sequences: Sequence[Sequenced]) -> list[Any]:
        """The answers to `sequences`, in their order. Raises what answering their batches raised."""
        if self._answer is None:
            raise RewardError("the model of this reward has not been started, or was closed")
        loop = asyncio.get_running_loop()
        mine = [_Waiting(sequence, loop.create_future()) for sequence in sequences]
        self._waiting += mine
        if self._drain is None or self._drain.done():
            self._drain = loop.create_task(self._work_off())
        return list(await asyncio.gather(*(waiting.answer for waiting in mine)))

    async def close(self) -> None:
        """Let go of the model; a batch under way is finished first, what still waits is cancelled."""
        waiting, self._waiting, self._answer = self._waiting, [], None
        for item in waiting:
            item.answer.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    async def _work_off(self) -> None:
        """Answer what waits, round by round: a round takes all there is, so that nothing waits for more than the round before it."""
        await asyncio.sleep(0)  # calls of the same moment join the first round
        while self._waiting:
            taken, self._waiting = self._waiting, []
            for batch in batches(taken, [len(item.sequence) for item in taken], self._max_tokens):
                await self._answer_batch([item for item in batch if not item.answer.done()])

    async def _answer_batch(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        try:
            assert self._answer is not None
            sequences = [item.sequence for item in batch]
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, sequences)
        except Exception as error:  # whatever it is, it belongs to those who wait for it
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(error)
            return
        self.num_batches += 1
        for item, answer in zip(batch, answers, strict=True):
            if not item.answer.done():
                item.answer.set_result(answer)


def batches(items: Sequence[Any], lengths: Sequence[int], max_tokens: int) -> list[list[Any]]:
    """Cut items into batches of at most `max_tokens` padded tokens, by length so that little is padding."""
    cut: list[list[Any]] = []
    for i in sorted(range(len(items)), key=lambda i: lengths[i]):
        if not cut or lengths[i] * (len(cut[-1]) + 1) > max_tokens:
            cut.append([])
        cut[-1].append(items[i])
    return cut
