"""PPO for long chains of thought (VAPO, arXiv:2504.05118)."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

import torch
from torch import Tensor

from rlft.algorithms.advantages import on_trajectories, outcomes, whiten
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.gae import gae
from rlft.algorithms.grpo import clipped
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.ppo import NEEDS, clipped_critic
from rlft.types import Batch


def vapo(
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    length_alpha: float = 0.05,
    positive_coef: float = 0.1,
    right_at: float = 1.0,
    value_clip: float | None = 0.2,
    **shared: Unpack[Shared],
) -> Algorithm:
    """PPO with a lambda that grows with an answer's length for the policy and is 1 for the critic, a higher upper
    clip, and a supervised loss on right answers. Its value warm-up is the critic's, not the method's.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        length_alpha: > 0, see `gae.gae`.
        positive_coef: weight of the mean cross-entropy over the tokens of right answers, all ranks'; 0 for none.
        right_at: total reward from which on an answer is right; a KL penalty in the reward counts too.
        value_clip: as in `ppo`.
        shared: see `policy_gradient.Shared`. Another aggregation than "token" needs positive_coef = 0.
    """
    expect(is_number(length_alpha, 0) and length_alpha > 0, "length_alpha", "more than 0", length_alpha)
    expect(is_number(positive_coef, 0), "positive_coef", "at least 0", positive_coef)
    expect(is_number(right_at), "right_at", "a number", right_at)
    weighed = shared.get("aggregation", "token")
    expect(not positive_coef or weighed == "token", "aggregation", "'token', over which positive_coef's mean is taken", weighed)
    policy_loss = clipped(clip_low, clip_high)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        values, mask = masked(batch.values, batch.loss_mask), batch.loss_mask
        estimates, returns = gae(batch, values, length_alpha=length_alpha, critic_lam=1.0)
        right = on_trajectories(batch, (outcomes(batch)[0] >= right_at).float()) > 0
        tokens, of_right = reduce(torch.stack([mask.sum(), right.sum()]).double())
        weights = torch.where(right, tokens / of_right.clamp(min=1), 0.0).float()
        return replace(batch, advantages=whiten(estimates, mask, reduce), returns=returns, ce_weights=weights)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        per_token, metrics = policy_loss(logprobs, batch)
        return per_token - positive_coef * masked(batch.ce_weights, batch.loss_mask) * logprobs, metrics

    critic = clipped_critic(value_clip)
    return policy_gradient("vapo", advantages, surrogate, shared, needs=NEEDS, value_loss=critic, min_group=1, ratio=False)
