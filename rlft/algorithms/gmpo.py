"""Geometric-Mean Policy Optimization (arXiv:2507.20673)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from rlft.algorithms import losses
from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch


def gmpo(clip_low: float = 0.4, clip_high: float = 0.4, normalize: bool = True, **shared: Unpack[Shared]) -> Algorithm:
    """GRPO with the geometric instead of the arithmetic mean of a trajectory's token ratios, so that single tokens
    weigh little and the clip may be wide.

    Args:
        clip_low, clip_high: every log-ratio is kept in [-clip_low, clip_high] on the side that the advantage rewards.
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`; the aggregation is "sequence" unless set, the paper's.
    """
    expect(is_number(clip_low, 0), "clip_low", "at least 0", clip_low)
    expect(is_number(clip_high, 0), "clip_high", "at least 0", clip_high)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        old_logprobs, advantages = masked(batch.old_logprobs, mask), masked(batch.advantages, mask)
        per_token, cut = losses.gmpo(logprobs, old_logprobs, advantages, mask, batch.traj_ids, clip_low, clip_high)
        return per_token, {"ratio/clipped": cut.float()}

    estimator = group_normalized if normalize else group_centered
    defaults = Shared(aggregation="sequence")
    return policy_gradient(
        "gmpo", outcome(estimator), surrogate, shared, defaults, unit="trajectory", signal="advantages", by_outcome=True
    )
