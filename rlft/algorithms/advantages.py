"""Advantage estimators over whole trajectories.

Axes: B rows, T tokens, M trajectories. An outcome estimator maps one total reward per
trajectory to one advantage per trajectory: (totals [M], group_ids [M]) -> [M].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from rlft.algorithms.base import AdvantageFn, Reduce
from rlft.algorithms.masking import masked
from rlft.types import Batch


def outcomes(batch: Batch) -> tuple[Tensor, Tensor]:
    """Total reward of each trajectory over all tokens of all its rows, and its group.

    Summed in float64 and rounded to float32, so that equal totals that were added up in
    different ways (three turns of 0.1, one reward of 0.3) come out equal.

    Returns:
        totals [M] float32, group_ids [M], in order of `traj_ids`.
    """
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    totals = batch.rewards.new_zeros(len(ids), dtype=torch.float64).index_add_(0, row, batch.rewards.double().sum(-1))
    group_ids = torch.zeros_like(ids)
    group_ids[row] = batch.group_ids
    return totals.float(), group_ids


def outcome(estimator: Callable[[Tensor, Tensor], Tensor]) -> AdvantageFn:
    """Lift an outcome estimator to batches: every trained token of a trajectory gets the
    trajectory's advantage, every other token 0."""

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        per_trajectory = estimator(*outcomes(batch))
        _, row = torch.unique(batch.traj_ids, return_inverse=True)
        return replace(batch, advantages=masked(per_trajectory[row, None], batch.loss_mask))

    return advantages


def group_mean(x: Tensor, group_ids: Tensor) -> Tensor:
    """Mean over each entry's own group: [M], [M] -> [M] float64.

    Computed from the distance to the group's least member: the mean of equal values is
    exactly that value, where sum / count may be off by a rounding error.
    """
    x = x.double()
    ids, group = torch.unique(group_ids, return_inverse=True)
    least = x.new_zeros(len(ids)).scatter_reduce_(0, group, x, "amin", include_self=False)[group]
    total = x.new_zeros(len(ids)).index_add_(0, group, x - least)
    return least + (total / torch.bincount(group))[group]


def group_centered(totals: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i - mean: Dr. GRPO (arXiv:2503.20783).

    Groups of equal rewards and lone members get exactly 0.
    """
    return (totals.double() - group_mean(totals, group_ids)).to(totals.dtype)


def group_normalized(totals: Tensor, group_ids: Tensor, eps: float = 1e-6) -> Tensor:
    """A_i = (r_i - mean) / (std + eps): GRPO (arXiv:2402.03300), population std.

    Computed from centered values, so a large common offset costs no precision.
    Groups of equal rewards and lone members get exactly 0.
    """
    centered = group_centered(totals.double(), group_ids)
    std = group_mean(centered.square(), group_ids).sqrt()
    return (centered / (std + eps)).to(totals.dtype)
