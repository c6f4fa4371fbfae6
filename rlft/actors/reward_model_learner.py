"""The driver's view of the ranks that train a reward model: update, score, save.

Axes: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlft.actors.deadline import within
from rlft.actors.reward_model_rank import PairLoss
from rlft.data.preferences import EncodedPair
from rlft.learner.batching import assign


class RewardModelLearner:
    """All ranks as one.

    Args:
        ranks: actor handles of RewardModelRank, rank 0 first.
        timeout_s: longest wait for an update, an evaluation or a save.
    """

    def __init__(self, ranks: Sequence[Any], timeout_s: float) -> None:
        self._ranks, self._timeout_s = ranks, timeout_s

    async def ready(self) -> Mapping[str, str]:
        """Wait until every rank has its share of the model. Returns what they chose; what a rank refuses is raised here."""
        return (await self._all([rank.ready.remote() for rank in self._ranks], "reward model (start)"))[0]

    async def update(self, pairs: Sequence[EncodedPair], loss: PairLoss) -> dict[str, float]:
        """One training step on whole pairs, balanced over the ranks by tokens. Returns metrics over all ranks."""
        calls = [rank.update.remote(loss, len(pairs), [pairs[i] for i in share]) for rank, share in self._shares(pairs)]
        return dict((await self._all(calls, "reward model (update)"))[0])

    async def score(self, pairs: Sequence[EncodedPair]) -> np.ndarray:
        """Scores [P, 2]: chosen, rejected."""
        shares = self._shares(pairs)
        found = await self._all([rank.score.remote([pairs[i] for i in share]) for rank, share in shares], "reward model (evaluation)")
        scores = np.zeros((len(pairs), 2), np.float32)
        for (_, share), part in zip(shares, found, strict=True):
            scores[share] = part
        return scores

    async def save(self, folder: Path) -> None:
        """Write the reward model in Hugging Face format."""
        await self._all([rank.save.remote(str(folder)) for rank in self._ranks], "reward model (save)")

    def _shares(self, pairs: Sequence[EncodedPair]) -> list[tuple[Any, list[int]]]:
        return list(zip(self._ranks, assign([pair.width for pair in pairs], len(self._ranks)), strict=True))

    async def _all(self, calls: Sequence[Any], what: str) -> list[Any]:
        return await within(calls, self._timeout_s, what)
