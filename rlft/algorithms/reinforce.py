"""REINFORCE (doi:10.1007/BF00992696) with an optional group baseline: the smallest algorithm, a template for your own."""

from __future__ import annotations

from torch import Tensor

from rlft.algorithms.advantages import group_centered, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.masking import masked
from rlft.types import Batch


def reinforce(baseline: bool = True) -> Algorithm:
    """-A log p: on-policy only, so use one minibatch and one epoch a step, and no staleness.

    Args:
        baseline: subtract the group's mean reward; False takes the reward as the advantage.
    """

    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return -masked(batch.advantages, batch.loss_mask) * masked(logprobs, batch.loss_mask), {}

    estimator = group_centered if baseline else lambda totals, group_ids: totals
    return Algorithm("reinforce", outcome(estimator), loss, min_group=1 + baseline, signal="advantages")
