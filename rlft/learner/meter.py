"""Metrics of one update, gathered without a synchronisation per micro-batch and reduced over ranks once."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

TOKENS = "learner/num_trained_tokens"


class Meter:
    """Sums, ratios of sums and maxima that stay tensors until `totals`. Every rank records the same names."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}  # denominators of the sums that are means
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add to a sum over ranks."""
        self._sums[name] = self._sums.get(name, 0.0) + self._scalar(value)

    def add_ratio(self, name: str, value: Tensor | float, count: Tensor | float) -> None:
        """Add to a sum that is divided by the sum of `count`; 0 where that is 0."""
        self.add(name, value)
        self._counts[name] = self._counts.get(name, 0.0) + self._scalar(count)

    def add_means(self, per_token: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add [B, T] tensors to means over the masked tokens."""
        stacked = torch.stack([x.detach().expand(mask.shape) for x in per_token.values()])
        totals = torch.where(mask, stacked, 0.0).sum((-2, -1), dtype=torch.float64)
        count = mask.sum()
        self.add(TOKENS, count)
        for name, total in zip(per_token, totals.unbind(), strict=True):
            self.add_ratio(name, total, count)

    def average(self, name: str, value: float) -> None:
        """Add to a mean over the calls, for a value that every rank knows."""
        self.add_ratio(name, value, 1.0)

    def count(self, name: str, value: float) -> None:
        """Add to a total that every rank knows."""
        self._maxima[name] = self._maxima.get(name, 0.0) + self._scalar(value)

    def most(self, name: str, value: Tensor) -> None:
        """Keep the largest value over calls and ranks."""
        value = self._scalar(value)
        self._maxima[name] = torch.maximum(self._maxima[name], value) if name in self._maxima else value

    def timed(self, name: str, start: float) -> None:
        """Add the seconds since `start` (perf_counter); the slowest rank's total is reported."""
        self.count(name, time.perf_counter() - start)

    def totals(self) -> dict[str, float]:
        """Every metric over all ranks, in one collective operation."""
        sums, counts, maxima = sorted(self._sums), sorted(self._counts), sorted(self._maxima)
        mine = torch.stack([*(self._sums[n] for n in sums), *(self._counts[n] for n in counts), *(self._maxima[n] for n in maxima)])
        table = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(table, mine)
        ranks = torch.stack(table)
        summed, largest = ranks.sum(0).tolist(), ranks.amax(0).tolist()
        totals = dict(zip(sums, summed, strict=False))
        for name, count in zip(counts, summed[len(sums) :], strict=False):
            totals[name] = totals[name] / count if count else 0.0
        return totals | dict(zip(maxima, largest[len(sums) + len(counts) :], strict=True))

    def _scalar(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self._device)
