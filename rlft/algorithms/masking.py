"""From one loss per token to one number: every token gets its share of the step's loss.

Axes: B rows, T tokens, M trajectories. The shares are fixed before a batch is cut, so no
split over ranks, micro-batches or accumulation steps can change the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.algorithms.base import Aggregation, Reduce
from rlft.errors import ConfigError


def loss_weights(loss_mask: Tensor, traj_ids: Tensor, aggregation: Aggregation, reduce: Reduce, max_length: int | None = None) -> Tensor:
    """Share of the step's loss that each token carries; 0 where it is not trained.

    With n_i the trained tokens of trajectory i over all its rows, and M the trajectories
    with a trained token over all ranks:

    "token": 1 / sum_i n_i: every token counts the same (DAPO, arXiv:2503.14476).
    "sequence": 1 / (n_i M): every trajectory counts the same (GRPO, arXiv:2402.03300).
    "constant": 1 / (max_length M): no division by a sampled length (Dr. GRPO, arXiv:2503.20783).

    Args:
        loss_mask: [B, T] bool, this rank's part of one optimizer step.
        traj_ids: [B]; a trajectory's rows are all on one rank and in one optimizer step.
        reduce: sums over ranks; called once, whatever the masks hold.
        max_length: tokens, for "constant" only.

    Returns:
        [B, T] float32; all zeros, not NaN, when no rank trains any token.

    Raises:
        ConfigError: "constant" without max_length, or an unknown aggregation.
    """
    trained = loss_mask.sum(-1).double()
    _, row = torch.unique(traj_ids, return_inverse=True)
    per_trajectory = trained.new_zeros(len(row)).index_add_(0, row, trained)
    if aggregation == "token":
        denominator = reduce(trained.sum()).expand(len(row))
    elif aggregation == "sequence":
        denominator = reduce((per_trajectory > 0).sum().double()) * per_trajectory[row]
    elif aggregation == "constant" and max_length:
        denominator = (reduce((per_trajectory > 0).sum().double()) * max_length).expand(len(row))
    elif aggregation == "constant":
        raise ConfigError("aggregation 'constant' needs max_length: the tokens of a full-length trajectory, such as rollout.max_tokens")
    else:
        raise ConfigError(f"aggregation: expected 'token', 'sequence' or 'constant', got {aggregation!r}")
    return torch.where(loss_mask, 1 / denominator.clamp(min=1)[:, None], 0.0).float()


def weighted_sum(per_token: Tensor, weights: Tensor) -> Tensor:
    """Sum of per_token * weights over the tokens with a weight: [B, T], [B, T] -> scalar.

    Tokens of weight 0 are left out, not multiplied by 0, so a NaN there is harmless.
    """
    return torch.where(weights != 0, per_token * weights, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x where mask is True; 0 when it is nowhere True: [B, T], [B, T] -> scalar."""
    return torch.where(mask, x, 0.0).sum() / mask.sum().clamp(min=1)


def masked(x: Tensor | None, mask: Tensor) -> Tensor:
    """x where mask is True, else 0, with no gradient there: [B, T], [B, T] -> [B, T].

    A loss passes its inputs through this first. Excluding a token after the loss is too late
    for the gradient: 0 * NaN in the backward pass of an exp is NaN.

    Raises:
        ValueError: x is None, a stream of the batch that nobody filled.
    """
    if x is None:
        raise ValueError("this stream of the batch is not filled: name it in Algorithm.needs, or fill it in Algorithm.advantages")
    return torch.where(mask, x, 0.0)


def trajectory_sum(x: Tensor, mask: Tensor, traj_ids: Tensor) -> Tensor:
    """Sum over a trajectory's trained tokens over all its rows, on each of them: [B, T], [B, T], [B] -> [B, 1].

    The trajectory's rows must all be among the B: `Algorithm.unit` "trajectory" in a loss. Summed in float64
    and rounded to x's type, so that padding and the order of rows hardly show. 0 where nothing is trained.
    """
    _, row = torch.unique(traj_ids, return_inverse=True)
    per_row = masked(x, mask).sum(-1, dtype=torch.float64)
    return per_row.new_zeros(len(row)).index_add(0, row, per_row)[row, None].to(x.dtype)


def trajectory_mean(x: Tensor, mask: Tensor, traj_ids: Tensor) -> Tensor:
    """Mean over a trajectory's trained tokens over all its rows, on each of them: [B, T], [B, T], [B] -> [B, 1].

    As `trajectory_sum`; 0 where nothing is trained.
    """
    return trajectory_sum(x, mask, traj_ids) / trajectory_sum(torch.ones_like(x), mask, traj_ids).clamp(min=1)
