"""Supervised fine-tuning through the same learner: cross-entropy on the trained tokens."""

from __future__ import annotations

from torch import Tensor

from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.masking import masked
from rlft.types import Batch


def sft() -> Algorithm:
    """-log p of every trained token, times `ce_weights` where the batch has them.

    The step's loss is a mean over tokens, not over weights: doubling all weights doubles it.
    """

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        return batch

    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        cross_entropy = -masked(logprobs, batch.loss_mask)
        metrics = {"sft/cross_entropy": cross_entropy.detach()}
        if batch.ce_weights is not None:
            cross_entropy = cross_entropy * masked(batch.ce_weights, batch.loss_mask)
        return cross_entropy, metrics

    return Algorithm("sft", advantages, loss, may_truncate=True)
