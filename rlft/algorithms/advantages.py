"""Advantage estimators over whole trajectories.

Axes: B rows, T tokens, M trajectories. An outcome estimator maps one total reward per
trajectory to one advantage per trajectory: (totals [M], group_ids [M]) -> [M].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def of_trajectories(batch: Batch, per_row: Tensor | None) -> Tensor:
    """What every row of a trajectory repeats, once: [B, ...] -> [M, ...], in order of `traj_ids`.

    Raises:
        ValueError: per_row is None, a field of the batch that the run did not fill.
    """
    if per_row is None:
        raise ValueError("this field of the batch is not filled: name it in Algorithm.needs or Algorithm.parts")
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    out = per_row.new_zeros(len(ids), *per_row.shape[1:])
    out[row] = per_row
    return out


def on_trajectories(batch: Batch, per_trajectory: Tensor) -> Tensor:
    """A trajectory's number on each of its trained tokens, 0 on every other token: [M] -> [B, T]."""
    _, row = torch.unique(batch.traj_ids, return_inverse=True)
    return masked(per_trajectory[row, None], batch.loss_mask)


def outcome(estimator: Callable[[Tensor, Tensor], Tensor]) -> AdvantageFn:
    """Lift an outcome estimator to batches: every trained token of a trajectory gets the
    trajectory's advantage, every other token 0."""

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        return replace(batch, advantages=on_trajectories(batch, estimator(*outcomes(batch))))

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


def leave_one_out(totals: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = r_i - mean of the group's other members: RLOO (arXiv:2402.14740).

    n / (n - 1) times the centered reward, so equal rewards get exactly 0. A lone member gets 0.
    """
    _, group, size = torch.unique(group_ids, return_inverse=True, return_counts=True)
    n = size[group].double()
    return (group_centered(totals.double(), group_ids) * n / (n - 1).clamp(min=1)).to(totals.dtype)


def greedy_baseline(batch: Batch, reduce: Reduce) -> Batch:
    """A_i = r_i - the reward of a greedy answer to the task: ReMax (arXiv:2310.10505).

    Reads `Batch.baselines`. A sample that earns what the greedy answer earns gets exactly 0.
    """
    totals, _ = outcomes(batch)
    return replace(batch, advantages=on_trajectories(batch, totals - of_trajectories(batch, batch.baselines)))


def parts_normalized(parts: Tensor, weights: Sequence[float], group_ids: Tensor) -> Tensor:
    """A_i = sum_p w_p (r_ip - mean_p) / (std_p + eps): GDPO (arXiv:2601.05242) before its batch normalisation.

    Each reward part is normalised over the group on its own, so that (0, 1) and (1, 0) beside
    (0, 0) do not become what (1, 1) would be, and a part's scale does not decide its weight.

    Args:
        parts: [M, P].
        weights: P numbers.
        group_ids: [M].

    Returns:
        [M]. A part that is equal for the whole group contributes exactly 0, and so does a lone member.
    """
    out = parts.new_zeros(len(parts), dtype=torch.float64)
    for part, weight in zip(parts.unbind(-1), weights, strict=True):
        out += weight * group_normalized(part.double(), group_ids)
    return out.to(parts.dtype)


def two_level(totals: Tensor, group_ids: Tensor, mode_ids: Tensor, margin: float = 1e-6) -> tuple[Tensor, Tensor]:
    """How good an answer is for its mode, and its mode for the task: HGPO (arXiv:2505.14631).

    Both are rewards of 1 or 0, normalised as in GRPO. Within a mode, the best answers of the group earn 1.
    Between modes, all answers of the mode with the largest mean earn 1, if that mean lies more than
    `margin` above every other mode's. We differ in near ties, which go to no mode (the
    paper's go to the shorter one), and in normalising within each mode instead of over the group.

    Args:
        totals, group_ids, mode_ids: [M]. Equal mode ids in different groups have nothing to do with each other.
        margin: in units of the reward, >= 0; the default leaves out rounding errors alone.

    Returns:
        intra [M], inter [M]; 0 for a lone answer of a mode, and for a group in one mode.
    """
    _, mode = torch.unique(torch.stack([group_ids, mode_ids]), dim=1, return_inverse=True)
    _, group = torch.unique(group_ids, return_inverse=True)
    best = _largest(totals, mode)
    mean = group_mean(totals, mode)
    near = _largest(mean, group) - mean <= margin
    leader = _largest(torch.where(near, mode, -1), group)
    contested = _largest((near & (mode != leader)).int(), group) > 0
    wins = near & ~contested
    return group_normalized((totals == best).to(totals.dtype), mode), group_normalized(wins.to(totals.dtype), group)


def _largest(x: Tensor, groups: Tensor) -> Tensor:
    """Largest value of each entry's own group: [M], [M] -> [M]. Groups are counted from 0."""
    return x.new_zeros(int(groups.max()) + 1).scatter_reduce_(0, groups, x, "amax", include_self=False)[groups]


def whiten(x: Tensor, mask: Tensor, reduce: Reduce, center: bool = True, eps: float = 1e-6) -> Tensor:
    """(x - mean) / (std + eps) over the trained tokens of all ranks: REINFORCE++ (arXiv:2501.03262), population std.

    Summed in float64 from float32 values, so equal values give exactly 0, and a large offset costs no precision.

    Args:
        x, mask: [B, T], this rank's rows of the step.
        reduce: sums over ranks; called twice, whatever the masks hold.
        center: False takes 0 for the mean, also in the std: the signs of x stay, and so do its zeros.

    Returns:
        [B, T], 0 off the mask, and everywhere when no rank trains any token.
    """
    x = masked(x, mask).float().double()
    total, number = reduce(torch.stack([x.sum(), mask.sum().double()]))
    number = number.clamp(min=1)
    centered = masked(x - total / number, mask) if center else x
    std = torch.sqrt(reduce(centered.square().sum()) / number)
    return (centered / (eps + std)).float()
