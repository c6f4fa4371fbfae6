"""Group Relative Policy Optimization (arXiv:2402.03300) and its variants as options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor

from rlft.algorithms.advantages import group_centered, group_normalized, outcome
from rlft.algorithms.base import AdvantageFn, Aggregation, Algorithm, Need, Reduce
from rlft.algorithms.corrections import mismatch, truncated_importance
from rlft.algorithms.kl import ESTIMATORS, k3
from rlft.algorithms.losses import ppo_clip
from rlft.algorithms.masking import masked
from rlft.errors import ConfigError
from rlft.types import Batch

Baseline = Callable[[Tensor, Tensor], Tensor]
Estimator = Literal["k1", "k2", "k3"]
Place = Literal["loss", "reward"]
Overlong = Literal["keep", "filter"]


def grpo(
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    normalize: bool = True,
    aggregation: Aggregation = "token",
    kl_coef: float = 0.0,
    kl: Estimator = "k3",
    kl_in: Place = "loss",
    overlong: Overlong = "keep",
    max_length: int | None = None,
    is_cap: float | None = None,
) -> Algorithm:
    """Group-relative outcome advantages with the clipped surrogate.

    Args:
        clip_low, clip_high: the ratio is kept in [1 - clip_low, 1 + clip_high]; DAPO
            (arXiv:2503.14476) raises clip_high to 0.28.
        normalize: divide by the group's std; False only centers.
        aggregation: how tokens are weighed, see `masking.loss_weights`. The paper's is "sequence".
        kl_coef: weight of the KL to the reference policy; 0 needs no reference.
        kl: estimate of it; `kl.py` tells which gradient each has in which place.
        kl_in: "loss" adds kl_coef * KL to every token's loss. "reward" subtracts the sum over
            the trajectory's trained tokens from its total, measured at the step's start and
            *before* the group baseline, so the penalty is centered (and scaled) with the reward.
        overlong: "filter" takes truncated trajectories out of the loss and its denominators
            (DAPO); they still count in their group's baseline, which says how hard the task is.
        max_length: tokens per trajectory for aggregation "constant".
        is_cap: multiply the policy loss, not the KL, with importance weights engine -> learner
            truncated at this value; None leaves them out.

    Raises:
        ConfigError: a value out of range, or an option that does not apply to the others.
    """
    _check_choices(aggregation=aggregation, kl=kl, kl_in=kl_in, overlong=overlong)
    _check_numbers(clip_low, clip_high, kl_coef, max_length, is_cap)
    _check_options_apply(aggregation, max_length, kl_coef, kl, kl_in)
    estimate = ESTIMATORS[kl]

    def loss(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        logprobs, old_logprobs = masked(logprobs, mask), masked(batch.old_logprobs, mask)
        per_token, clipped = ppo_clip(logprobs, old_logprobs, masked(batch.advantages, mask), clip_low, clip_high)
        now = logprobs.detach()
        metrics = {
            "ratio/mean": (now - old_logprobs).exp(),
            "ratio/clipped": clipped.float(),
            "kl/old": k3(old_logprobs, now),  # the samples are the old policy's: KL(old || new)
        }
        if is_cap is not None:
            per_token = per_token * masked(batch.is_weights, mask)
            metrics |= mismatch(old_logprobs, masked(batch.rollout_logprobs, mask))
        if kl_coef:
            ref_logprobs = masked(batch.ref_logprobs, mask)
            metrics["kl/ref"] = k3(now, ref_logprobs)
            if kl_in == "loss":
                per_token = per_token + kl_coef * estimate(logprobs, ref_logprobs)
        return per_token, metrics

    needs: set[Need] = {"old_logprobs", "ref_logprobs"} if kl_coef else {"old_logprobs"}
    penalty = kl_coef if kl_in == "reward" else 0.0
    advantages = _advantages(group_normalized if normalize else group_centered, penalty, kl, overlong, is_cap)
    return Algorithm("grpo", advantages, loss, frozenset(needs), aggregation, max_length)


def _advantages(baseline: Baseline, penalty: float, kl: Estimator, overlong: Overlong, is_cap: float | None) -> AdvantageFn:
    """Fills advantages from rewards less `penalty` times the KL to the reference, the loss mask and importance weights."""
    fill, estimate = outcome(baseline), ESTIMATORS[kl]

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        rewards, mask = batch.rewards, batch.loss_mask
        if penalty:
            rewards = rewards - penalty * estimate(masked(batch.old_logprobs, mask), masked(batch.ref_logprobs, mask))
        filled = replace(fill(replace(batch, rewards=rewards), reduce), rewards=batch.rewards)
        if overlong == "filter":
            mask = mask & ~batch.truncated[:, None]
            filled = replace(filled, loss_mask=mask, advantages=masked(filled.advantages, mask))
        if is_cap is not None:
            weights = truncated_importance(masked(batch.old_logprobs, mask), batch.rollout_logprobs, is_cap)
            filled = replace(filled, is_weights=masked(weights, mask))
        return filled

    return advantages


def dr_grpo(
    max_length: int | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    kl: Estimator = "k3",
    kl_in: Place = "loss",
    overlong: Overlong = "keep",
    is_cap: float | None = None,
) -> Algorithm:
    """GRPO without its two biases (Dr. GRPO, arXiv:2503.20783): no division by the group's std,
    none by the sampled length. `max_length` must be set; the other options are `grpo`'s."""
    plain = grpo(clip_low, clip_high, False, "constant", kl_coef, kl, kl_in, overlong, max_length, is_cap)
    return replace(plain, name="dr_grpo")


def _check_choices(**given: str) -> None:
    valid = {"aggregation": Aggregation, "kl": Estimator, "kl_in": Place, "overlong": Overlong}
    for option, value in given.items():
        if value not in get_args(valid[option]):
            raise ConfigError(f"algorithm.{option}: expected one of {', '.join(get_args(valid[option]))}, got {value!r}")


def _check_numbers(clip_low: float, clip_high: float, kl_coef: float, max_length: int | None, is_cap: float | None) -> None:
    rules = [
        (0 <= clip_low <= 1, f"algorithm.clip_low: expected 0 to 1, got {clip_low}"),
        (clip_high >= 0, f"algorithm.clip_high: expected at least 0, got {clip_high}"),
        (kl_coef >= 0, f"algorithm.kl_coef: expected at least 0, got {kl_coef}"),
        (max_length is None or max_length >= 1, f"algorithm.max_length: expected at least 1, got {max_length}"),
        (is_cap is None or is_cap > 0, f"algorithm.is_cap: expected more than 0, got {is_cap}; leave it out for no importance weights"),
    ]
    _raise_first_broken(rules)


def _check_options_apply(aggregation: str, max_length: int | None, kl_coef: float, kl: str, kl_in: str) -> None:
    """An option that cannot have an effect is an error, never a silent no-op."""
    constant = aggregation == "constant"
    rules = [
        (kl_coef > 0 or kl == "k3", f"algorithm.kl = {kl!r} needs kl_coef > 0"),
        (kl_coef > 0 or kl_in == "loss", f"algorithm.kl_in = {kl_in!r} needs kl_coef > 0"),
        (not constant or max_length is not None, "algorithm.max_length: missing; 'constant' divides by it: set it to rollout.max_tokens"),
        (constant or max_length is None, f"algorithm.max_length needs aggregation = 'constant', got {aggregation!r}"),
    ]
    _raise_first_broken(rules)


def _raise_first_broken(rules: list[tuple[bool, str]]) -> None:
    for holds, message in rules:
        if not holds:
            raise ConfigError(message)
