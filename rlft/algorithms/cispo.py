"""Clipped importance sampling policy optimization: CISPO of MiniMax-M1 (arXiv:2506.13585)."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from rlft.algorithms import losses
from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch


def cispo(clip_low: float = 1.0, clip_high: float = 4.0, normalize: bool = True, **shared: Unpack[Shared]) -> Algorithm:
    """REINFORCE over GRPO's advantages, weighed with the clipped ratio: no token's gradient is cut, so rare tokens
    that turn an argument around keep theirs.

    Args:
        clip_low, clip_high: the weight is kept in [1 - clip_low, 1 + clip_high]; 1 and more below is no bound, which is
            the paper's choice. It states no number for the upper one.
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`.
    """
    expect(is_number(clip_low, 0), "clip_low", "at least 0", clip_low)
    expect(is_number(clip_high, 0), "clip_high", "at least 0", clip_high)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        old_logprobs, advantages = masked(batch.old_logprobs, batch.loss_mask), masked(batch.advantages, batch.loss_mask)
        per_token, bounded = losses.cispo(logprobs, old_logprobs, advantages, clip_low, clip_high)
        return per_token, {"ratio/clipped": bounded.float()}

    estimator = group_normalized if normalize else group_centered
    return policy_gradient("cispo", outcome(estimator), surrogate, shared, signal="advantages", ratio=False, by_outcome=True)
