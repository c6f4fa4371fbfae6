"""Negative-aware fine-tuning (NFT, arXiv:2505.18116): supervised learning from right and from wrong answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Unpack, get_args

import torch
from torch import Tensor

from rlft.algorithms import losses
from rlft.algorithms.advantages import group_mean, of_trajectories, on_trajectories, outcomes
from rlft.algorithms.base import Algorithm, Reduce
from rlft.algorithms.losses import PASS_RATES, Level
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import Shared, expect, is_number, policy_gradient
from rlft.types import Batch

PassRate = Literal["group", "ledger"]
Weight = Literal["none", "1-p", "sqrt"]


def nft(
    pass_rate: PassRate = "group",
    weight: Weight = "1-p",
    negative_weight: float = 1.0,
    threshold: float = 1.0,
    level: Level = "token",
    eps_right: float = 0.0,
    eps_wrong: float = 1.0,
    **shared: Unpack[Shared],
) -> Algorithm:
    """The likelihood of right answers under the policy and of wrong ones under the policy that it implies for
    them, see `losses.nft`. On-policy its gradient is Dr. GRPO's with weight "1-p" and GRPO's with "sqrt", of rewards
    1 and 0.

    Args:
        pass_rate: the share p of right answers to a task: in the "group", or over the run in the "ledger". With
            "group", groups that are all right or all wrong, and lone members, have no part in the loss, as in the
            paper. With "ledger" they have: an answer counts against what the run knows of the task.
        weight: of a task: 1, 1 - p, or sqrt((1 - p) / p); p kept in [0.02, 0.98].
        negative_weight: of wrong answers beside it; 0 trains on right ones only.
        threshold: an answer is right when its trajectory earned at least this.
        level: the ratio is per "token", or the product over the "sequence" (the aggregation is then "sequence" unless set).
        eps_right, eps_wrong: see `losses.nft`.
        shared: see `policy_gradient.Shared`; kl_in must be "loss": a penalty in the reward would make answers wrong.

    The stream `advantages` holds the weight, negative where the answer is wrong.
    """
    for option, value, choices in [("pass_rate", pass_rate, PassRate), ("weight", weight, Weight), ("level", level, Level)]:
        expect(value in get_args(choices), option, f"one of {', '.join(get_args(choices))}", value)
    for option, value in [("negative_weight", negative_weight), ("eps_right", eps_right)]:
        expect(is_number(value, 0), option, "at least 0", value)
    expect(is_number(eps_wrong, 0) and eps_wrong > 0, "eps_wrong", "more than 0", eps_wrong)
    expect(is_number(threshold), "threshold", "a number", threshold)
    expect(shared.get("kl_in", "loss") == "loss", "kl_in", "'loss'", shared.get("kl_in"))

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        totals, group_ids = outcomes(batch)
        right = totals >= threshold
        rates = group_mean(right, group_ids) if pass_rate == "group" else of_trajectories(batch, batch.pass_rates).double()
        weights = torch.where(right, 1.0, -negative_weight) * _task_weights(weight, rates)
        if pass_rate == "group":
            weights = masked(weights, (rates > 0) & (rates < 1))
        per_row = rates.float()[torch.unique(batch.traj_ids, return_inverse=True)[1]]
        return replace(batch, advantages=on_trajectories(batch, weights.float()), pass_rates=per_row)

    def surrogate(logprobs: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mask = batch.loss_mask
        old_logprobs, weights = masked(batch.old_logprobs, mask), masked(batch.advantages, mask)
        rates = masked(batch.pass_rates, mask.any(-1))[:, None]
        per_token = losses.nft(logprobs, old_logprobs, weights > 0, rates, mask, batch.traj_ids, level, eps_right, eps_wrong)
        return weights.abs() * per_token, {"nft/right": (weights > 0).float()}

    sequence = level == "sequence"
    defaults: Shared = {"aggregation": "sequence"} if sequence else {}
    unit, min_group = "trajectory" if sequence else "row", 1 + (pass_rate == "group")
    return policy_gradient("nft", advantages, surrogate, shared, defaults, unit=unit, min_group=min_group, signal="advantages", ratio=False)


def _task_weights(weight: Weight, rates: Tensor) -> Tensor:
    p = rates.clamp(*PASS_RATES)
    return {"none": torch.ones_like(p), "1-p": 1 - p, "sqrt": ((1 - p) / p).sqrt()}[weight]
