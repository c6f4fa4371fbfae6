"""The endless seeded stream of tasks that a run draws from: shuffled, filtered and ordered by pass rates."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from rlft.config import DataConfig
from rlft.data.ledger import Ledger
from rlft.errors import DataError
from rlft.types import Task


class TaskStream(Iterator[Task]):
    """Tasks without end, epoch after epoch, each exactly once per epoch, but with `curriculum = "learnable"`.

    The order is a pure function of (seed, epoch), and with a curriculum of the ledger as it was at the epoch's beginning. So
    `position` (places of the order gone by, those of tasks passed over included) and that order are all that a checkpoint
    has to keep: a stream made from `state()` goes on as the one that gave it.

    Args:
        config: its `shuffle`, `curriculum` and pass-rate limits.
        ledger: pass rates of the run so far; the stream looks, the loop writes.
        first_attempts: by task id, what to begin with; `share` of the places, chosen by (seed, position), get theirs.
        state: where to go on.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        seed: int = 0,
        config: DataConfig | None = None,
        ledger: Ledger | None = None,
        first_attempts: Mapping[str, str] | None = None,
        share: float = 0.0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not tasks:
            raise DataError("a task stream needs at least one task")
        self._tasks, self._seed, self._config = tuple(tasks), seed, config or DataConfig()
        self._ledger = Ledger() if ledger is None else ledger
        self._first_attempts, self._share = first_attempts or {}, share
        self.position = int(state["position"]) if state else 0
        if self.position < 0:
            raise DataError(f"position: expected 0 or more tasks drawn, got {self.position}")
        kept = state.get("order") if state else None
        if kept is not None and len(kept) != len(self._tasks):
            raise DataError(f"the checkpoint's order has {len(kept)} tasks, and the data has {len(self._tasks)} now")
        self._orders = {self.epoch: self._order_of(self.epoch) if kept is None else np.array(kept)}  # of this epoch and the last
        self._drawn = [self.position]  # position after 0, 1, ... tasks

    @property
    def epoch(self) -> int:
        """The epoch of the next task, from 0."""
        return self.position // len(self._tasks)

    def __next__(self) -> Task:
        passed_over = 0
        while self._is_passed_over(task := self._advance()):
            passed_over += 1
            if passed_over % len(self._tasks) == 0 and all(map(self._is_passed_over, self._tasks)):
                raise DataError(self._nothing_left())
        self._drawn.append(self.position)
        return task

    def take(self, number: int) -> list[Task]:
        """The next `number` tasks. Across the end of an epoch a task may come twice."""
        return list(islice(self, number))

    def state(self, drawn: int | None = None) -> dict[str, Any]:
        """What makes the same stream go on from where it was after `drawn` tasks of this object; default all it gave."""
        position = self._drawn[len(self._drawn) - 1 if drawn is None else drawn]
        order = self._orders.get(position // len(self._tasks)) if self._config.curriculum != "none" else None
        return {"position": position, **({} if order is None else {"order": order.tolist()})}

    def _advance(self) -> Task:
        epoch, index = divmod(self.position, len(self._tasks))
        if epoch not in self._orders:
            self._orders = {known: order for known, order in self._orders.items() if known == epoch - 1} | {epoch: self._order_of(epoch)}
        task = self._tasks[self._orders[epoch][index]]
        chosen = zlib.crc32(f"{self._seed}/{self.position}".encode()) < self._share * 2**32
        self.position += 1
        return replace(task, first_attempt=self._first_attempts.get(task.id, "")) if chosen else task

    def _is_passed_over(self, task: Task) -> bool:
        config, record = self._config, self._ledger[task.id]
        if config.min_pass_rate <= 0 and config.max_pass_rate >= 1:
            return False
        return record.attempts >= config.min_attempts and not config.min_pass_rate <= record.rate <= config.max_pass_rate

    def _order_of(self, epoch: int) -> np.ndarray:
        order = self._shuffled(epoch)
        if self._config.curriculum == "none":
            return order
        rates = np.array([self._ledger[task.id].expected for task in self._tasks])
        if self._config.curriculum == "easy_first":
            return order[np.argsort(-rates[order], kind="stable")]
        weights = np.where([self._is_passed_over(task) for task in self._tasks], 0.0, rates * (1 - rates))
        if not weights.any():
            raise DataError(self._nothing_left())
        picks = self._raw(epoch) / 2**64 * weights.sum()
        return np.searchsorted(weights.cumsum(), picks, side="right").clip(max=len(weights) - 1)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.argsort(self._raw(epoch), kind="stable") if self._config.shuffle else np.arange(len(self._tasks))

    def _raw(self, epoch: int) -> np.ndarray:
        # Raw bit-generator output is stable over NumPy versions; Generator.permutation is not promised to be (NEP 19).
        return np.random.PCG64([self._seed % 2**64, epoch]).random_raw(len(self._tasks))

    def _nothing_left(self) -> str:
        rates = [self._ledger[task.id].rate for task in self._tasks]
        low, high = self._config.min_pass_rate, self._config.max_pass_rate
        return (
            f"no task is left: of {len(rates)}, {sum(rate < low for rate in rates)} have a pass rate below data.min_pass_rate {low:g} "
            f"and {sum(rate > high for rate in rates)} above data.max_pass_rate {high:g}; widen them, give more data, or end the run before"
        )
