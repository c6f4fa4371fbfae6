"""Supervised learning on one's own samples: rejection sampling (expert iteration) and reward-weighted regression.

Neither corrects for samples of other weights: use one epoch a step and little staleness.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from rlft.algorithms.advantages import group_mean, on_trajectories, outcomes
from rlft.algorithms.base import Aggregation, Algorithm, Reduce
from rlft.algorithms.policy_gradient import expect, is_number
from rlft.algorithms.sft import sft
from rlft.types import Batch

Center = Literal["max", "mean"]
Mean = Literal["token", "sequence"]


def rft(threshold: float = 1.0, most: int | None = None, aggregation: Mean = "token") -> Algorithm:
    """Cross-entropy on right answers (RFT, arXiv:2308.01825; expert iteration). Wrong ones leave the loss mask,
    and with it the denominators; a step without a right answer changes nothing.

    Args:
        threshold: an answer is right when its trajectory earned at least this.
        most: right answers that a group trains on, the first by number; None for all. With a bound, easy tasks do not
            drown the hard ones.
        aggregation: see `masking.loss_weights`.
    """
    expect(is_number(threshold), "threshold", "a number", threshold)
    expect(most is None or (isinstance(most, int) and is_number(most, 1)), "most", "a whole number, at least 1", most)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        totals, group_ids = outcomes(batch)
        chosen = totals >= threshold
        if most is not None:
            earlier = torch.tril(group_ids[:, None] == group_ids)  # itself included
            chosen = chosen & ((earlier & chosen).sum(-1) <= most)
        mask = batch.loss_mask & (on_trajectories(batch, chosen.float()) > 0)
        return replace(batch, loss_mask=mask, ce_weights=mask.float())

    return replace(sft(), name="rft", advantages=advantages, aggregation=_checked(aggregation))


def rwr(temperature: float = 1.0, center: Center = "max", aggregation: Mean = "token") -> Algorithm:
    """Cross-entropy weighed with exp((r - center) / temperature): reward-weighted regression, as RISE uses it
    (arXiv:2407.18219) over the attempts at one state.

    A group of equal rewards has weight 1 throughout, also when all are wrong.

    Args:
        temperature: > 0, in units of the reward. Small ones train on each group's best alone, large ones on everything.
        center: of the group's rewards: with "max" weights are at most 1, with "mean" an improvement weighs more than 1.
        aggregation: see `masking.loss_weights`. The step's loss is a mean over tokens, not over weights.
    """
    expect(is_number(temperature, 0) and temperature > 0, "temperature", "more than 0", temperature)
    expect(center in get_args(Center), "center", f"one of {', '.join(get_args(Center))}", center)

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        totals, group_ids = outcomes(batch)
        middle = _group_max(totals, group_ids) if center == "max" else group_mean(totals, group_ids)
        weights = ((totals.double() - middle) / temperature).exp().float()
        return replace(batch, ce_weights=on_trajectories(batch, weights))

    return replace(sft(), name="rwr", advantages=advantages, aggregation=_checked(aggregation), min_group=2)


def _group_max(x: Tensor, group_ids: Tensor) -> Tensor:
    """Most of each entry's own group: [M], [M] -> [M] float64."""
    return torch.where(group_ids[:, None] == group_ids, x.double(), -torch.inf).amax(-1)


def _checked(aggregation: Aggregation) -> Aggregation:
    expect(aggregation in get_args(Mean), "aggregation", f"one of {', '.join(get_args(Mean))}", aggregation)
    return aggregation
