"""Proximal policy optimisation with a critic (PPO, arXiv:1707.06347)."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack, get_args

from torch import Tensor

from rlft.algorithms.advantages import whiten
from rlft.algorithms.base import Algorithm, LossFn, Need, Reduce
from rlft.algorithms.gae import Discount, gae
from rlft.algorithms.grpo import clipped
from rlft.algorithms.losses import clipped_value
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch

NEEDS: tuple[Need, ...] = ("old_logprobs", "values")


def ppo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    discount: Discount = "token",
    normalize: bool = True,
    value_clip: float | None = 0.2,
    **shared: Unpack[Shared],
) -> Algorithm:
    """The clipped surrogate of advantages that a critic's values give, and the critic's clipped loss.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        gamma, lam, discount: see `gae.gae`.
        normalize: whiten the advantages over all trained tokens of the step.
        value_clip: a value is kept within this of the old one, in units of the reward; None leaves it free.
        shared: see `policy_gradient.Shared`. kl_in is "reward" and kl "k1" where nothing else is said.
    """
    for option, value in (("gamma", gamma), ("lam", lam)):
        expect(is_number(value, 0) and value <= 1, option, "0 to 1", value)
    expect(discount in get_args(Discount), "discount", f"one of {', '.join(get_args(Discount))}", discount)
    expect(discount == "token" or gamma < 1 or lam < 1, "discount", "'token' where gamma and lam are 1", discount)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        estimates, returns = gae(batch, masked(batch.values, batch.loss_mask), gamma, lam, discount)
        if normalize:
            estimates = whiten(estimates, batch.loss_mask, reduce)
        return replace(batch, advantages=estimates, returns=returns)

    surrogate, defaults = clipped(clip_low, clip_high), Shared(kl_in="reward", kl="k1")
    return policy_gradient("ppo", advantages, surrogate, shared, defaults, needs=NEEDS, value_loss=clipped_critic(value_clip), min_group=1)


def clipped_critic(value_clip: float | None) -> LossFn:
    """The critic's loss (`losses.clipped_value`) against a batch's returns.

    Raises:
        ConfigError: value_clip is not above 0.
    """
    expect(value_clip is None or (is_number(value_clip, 0) and value_clip > 0), "value_clip", "more than 0", value_clip)

    def value_loss(values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        values, old_values, returns = (masked(x, batch.loss_mask) for x in (values, batch.values, batch.returns))
        per_token, cut = clipped_value(values, old_values, returns, value_clip)
        now = values.detach()
        return per_token, {"critic/mean": now, "critic/error": (now - returns).square(), "critic/clipped": cut.float()}

    return value_loss
