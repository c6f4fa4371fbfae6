"""Clip-Cov and KL-Cov (arXiv:2505.22617): GRPO that spares the few tokens which cost most entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Unpack

from torch import Tensor

from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import Algorithm, Need, Reduce
from rlft.algorithms.covariance import covariance, highest, random_in_band
from rlft.algorithms.grpo import clipped
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.algorithms.ratios import bounded_exp
from rlft.types import Batch

READS: tuple[Need, ...] = ("old_logprobs",)


def clip_cov(
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalize: bool = True,
    **shared: Unpack[Shared],
) -> Algorithm:
    """GRPO without the gradient of some tokens whose covariance of log-probability and advantage is high.

    `covariance.py` says how they are chosen, and where that differs from the authors' code. They stay in the
    loss's denominators; their KL and entropy terms stay too.

    Args:
        fraction: of the step's trained tokens, in expectation.
        low, high: chosen from those with a covariance in between, in nats times the advantage's units. The paper's band
            is far out in the tail of long answers; short or already certain answers may have no token there.
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high].
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`.
    """
    expect(is_number(fraction, 0) and 0 < fraction <= 1, "fraction", "more than 0, at most 1", fraction)
    expect(is_number(low) and is_number(high) and low < high, "low", f"less than high = {high!r}", low)
    fill = outcome(group_normalized if normalize else group_centered)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        filled = fill(batch, reduce)
        found = _covariances(filled, reduce)
        chosen = random_in_band(found, batch.loss_mask, low, high, fraction, batch.token_ids, batch.policy_versions, reduce)
        return replace(filled, advantages=masked(filled.advantages, ~chosen))

    surrogate = clipped(clip_low, clip_high)
    return policy_gradient("clip_cov", advantages, surrogate, shared, estimator_needs=READS, signal="advantages", by_outcome=True)


def kl_cov(fraction: float = 2e-3, coef: float = 1.0, normalize: bool = True, **shared: Unpack[Shared]) -> Algorithm:
    """GRPO without a clip, where the tokens of highest covariance pay coef * |log ratio| to the old policy.

    At a step's first update nobody has strayed and nobody pays: with one update a step this is
    REINFORCE. The paid tokens' weights stand in the stream `kl_coef`.

    Args:
        fraction: of the step's trained tokens.
        coef: > 0.
        normalize: divide by the group's std; False only centers.
        shared: see `policy_gradient.Shared`, but for the KL to a reference: kl_coef must be 0.
    """
    expect(is_number(fraction, 0) and 0 < fraction <= 1, "fraction", "more than 0, at most 1", fraction)
    expect(is_number(coef, 0) and coef > 0, "coef", "more than 0", coef)
    expect(not shared.get("kl_coef"), "kl_coef", "0: kl_cov has a KL of its own, `coef`", shared.get("kl_coef"))
    fill = outcome(group_normalized if normalize else group_centered)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        filled = fill(batch, reduce)
        found = _covariances(filled, reduce)
        return replace(filled, kl_coef=coef * highest(found, batch.loss_mask, fraction, reduce))

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_ratio, weights = logprobs - masked(batch.old_logprobs, batch.loss_mask), masked(batch.kl_coef, batch.loss_mask)
        metrics = {"kl/held_back": (weights > 0).float()}
        return weights * log_ratio.abs() - masked(batch.advantages, batch.loss_mask) * bounded_exp(log_ratio), metrics

    return policy_gradient("kl_cov", advantages, surrogate, shared, estimator_needs=READS, signal="advantages", ratio=False)



def _covariances(batch: Batch, reduce: Reduce) -> Tensor:
    old_logprobs, advantages = masked(batch.old_logprobs, batch.loss_mask), masked(batch.advantages, batch.loss_mask)
    return covariance(old_logprobs, advantages, batch.loss_mask, reduce)
