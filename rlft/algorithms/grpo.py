"""Group Relative Policy Optimization (arXiv:2402.03300) and its relatives as options."""

from __future__ import annotations

from typing import Unpack

from torch import Tensor

from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm, LossFn
from rlft.algorithms.losses import ppo_clip
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch


def grpo(clip_low: float = 0.2, clip_high: float = 0.2, normalize: bool = True, **shared: Unpack[Shared]) -> Algorithm:
    """Group-relative outcome advantages with the clipped surrogate.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`. The paper's aggregation is "sequence", its KL k3 in the loss.
    """
    estimator = group_normalized if normalize else group_centered
    surrogate = clipped(clip_low, clip_high)
    return policy_gradient("grpo", outcome(estimator), surrogate, shared, signal="advantages", by_outcome=True)


def dr_grpo(clip_low: float = 0.2, clip_high: float = 0.2, **shared: Unpack[Shared]) -> Algorithm:
    """GRPO without its two biases (Dr. GRPO, arXiv:2503.20783): no division by the group's std,
    none by the sampled length. `max_length` must be set."""
    surrogate, defaults = clipped(clip_low, clip_high), Shared(aggregation="constant")
    return policy_gradient("dr_grpo", outcome(group_centered), surrogate, shared, defaults, signal="advantages", by_outcome=True)


def dapo(clip_low: float = 0.2, clip_high: float = 0.28, **shared: Unpack[Shared]) -> Algorithm:
    """GRPO with a higher upper clip, every token weighed alike and truncated trajectories left out
    (DAPO, arXiv:2503.14476). Its dynamic sampling is `rollout.drop_no_signal`, its overlong reward the
    reward `overlong`."""
    surrogate, defaults = clipped(clip_low, clip_high), Shared(overlong="filter")
    return policy_gradient("dapo", outcome(group_normalized), surrogate, shared, defaults, signal="advantages", by_outcome=True)


def clipped(clip_low: float, clip_high: float) -> LossFn:
    """The clipped surrogate (`losses.ppo_clip`) of a batch's advantages.

    Raises:
        ConfigError: a bound out of range.
    """
    expect(is_number(clip_low, 0) and clip_low <= 1, "clip_low", "0 to 1", clip_low)
    expect(is_number(clip_high, 0), "clip_high", "at least 0", clip_high)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        old_logprobs, advantages = masked(batch.old_logprobs, batch.loss_mask), masked(batch.advantages, batch.loss_mask)
        per_token, cut = ppo_clip(logprobs, old_logprobs, advantages, clip_low, clip_high)
        return per_token, {"ratio/clipped": cut.float()}

    return surrogate
