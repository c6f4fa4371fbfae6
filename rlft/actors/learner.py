"""The driver's view of the learner ranks: update, publish, save. It hands on references, never tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.actors.deadline import within
from rlft.actors.rollout_worker import Published
from rlft.actors.weights.transfer import Transfer
from rlft.algorithms.base import Algorithm
from rlft.learner.batching import assign
from rlft.types import GroupRef, Setting

Probe = Sequence[Sequence[int]]
DEFAULTS = Setting()


class Learner:
    """All learner ranks as one.

    Args:
        ranks: actor handles of LearnerRank, rank 0 first.
        timeout_s: longest wait for an update, a publish or a save.
        transfer: vLLM's weight-transfer backend; None publishes through memory.
        workers_per_engine: GPUs of one engine (its tensor parallel size).
        dtype: that engines hold weights in, where it is coarser than the learner's; they are sent in it. "": as the learner has them.
    """

    def __init__(
        self, ranks: Sequence[Any], timeout_s: float, transfer: Transfer | None = None, workers_per_engine: int = 1, dtype: str = ""
    ) -> None:
        self.ranks, self.timeout_s = ranks, timeout_s
        self.transfer, self.workers_per_engine, self.dtype = transfer, workers_per_engine, dtype
        self._connected = False

    async def ready(self) -> Mapping[str, str]:
        """Wait until every rank has its share of the model. Returns what they chose; what a rank refuses is raised here."""
        return (await self._all([rank.ready.remote() for rank in self.ranks], "learner (start)"))[0]

    async def update(self, groups: Sequence[GroupRef], algorithm: Algorithm, setting: Setting = DEFAULTS) -> dict[str, float]:
        """One training step on whole groups, balanced over the ranks by tokens.

        Returns metrics over all ranks; times are those of the slowest rank.
        """
        shares = assign([group.num_tokens for group in groups], len(self.ranks))
        calls = [
            rank.update.remote(algorithm, setting, *(groups[i].rows for i in share)) for rank, share in zip(self.ranks, shares, strict=True)
        ]
        return dict(max(await self._all(calls, "learner (update)"), key=_busy))

    async def publish(self, workers: Sequence[Any], version: int, probe: Probe) -> tuple[list[list[float]], list[Published]]:
        """Bring the weights to every rollout worker, which verifies them. Raises PublishError.

        Returns the probe's log-probabilities under the learner's weights, and what each worker found.
        """
        if self.transfer is None:
            exports = await self._all([rank.export_weights.remote(version, self.dtype) for rank in self.ranks], "learner (export)")
            receipt, *buckets = exports[0]
            loads = [worker.load_weights.remote(receipt, probe, *buckets) for worker in workers]
        else:
            await self._connect(workers)
            receipts = await self._all([rank.send_weights.remote(version) for rank in self.ranks], "learner (weight transfer)")
            loads = [worker.weights_transferred.remote(receipts[0], probe) for worker in workers]
        scored = [rank.probe_logprobs.remote(probe) for rank in self.ranks]  # while the workers load
        published = await self._all(loads, "rollout workers (loading weights)")
        return (await self._all(scored, "learner (probe)"))[0], published

    async def save(self, folder: Path, state: bool = False) -> None:
        """Write a checkpoint in Hugging Face format, and with `state` the optimizer beside it, in `folder`/state."""
        await self._all([rank.save.remote(str(folder), state) for rank in self.ranks], "learner (save)")

    async def _connect(self, workers: Sequence[Any]) -> None:
        if not self._connected:
            address = (await self._all([self.ranks[0].free_address.remote()], "learner"))[0]
            meeting = (self.transfer, workers, self.workers_per_engine, address, self.dtype)
            await self._all([rank.connect.remote(*meeting) for rank in self.ranks], "learner (connecting weight transfer)")
            self._connected = True

    async def _all(self, calls: Sequence[Any], what: str) -> list[Any]:
        return await within(calls, self.timeout_s, what)


def _busy(metrics: Mapping[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("time/"))
