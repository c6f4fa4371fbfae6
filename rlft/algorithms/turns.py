"""Turns of a batch: what each earned, what it is compared with, and its number on its tokens.

A trajectory may span several rows, and a turn number may be missing: an attempt that was
injected, or a turn that sampled nothing. Axes: B rows, T tokens, M trajectories, K turns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlft.algorithms.masking import masked
from rlft.types import Batch


@dataclass(frozen=True)
class Turns:
    """The turns of a batch, a table of trajectories in order of `traj_ids`.

    Attributes:
        rewards: [M, K] float32, what each turn earned by itself; 0 where there is none.
        sampled: [M, K] bool, turns that the policy wrote tokens of.
        group_ids: [M].
    """

    rewards: Tensor
    sampled: Tensor
    group_ids: Tensor


def in_force(batch: Batch) -> Tensor:
    """The turn that a token stands in or after, [B, T] int64, >= 0.

    A turn lasts from its first sampled token to the next turn's. A row's tokens before its
    first sampled token stand after the turn before that, which an earlier row holds (or nobody
    sampled). A row without a sampled token stands after the trajectory's last turn.
    """
    latest = batch.turn_ids.cummax(-1).values
    before = torch.where(batch.turn_ids >= 0, batch.turn_ids, torch.iinfo(torch.int64).max).amin(-1, keepdim=True) - 1
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    last = latest.new_zeros(len(ids)).scatter_reduce_(0, row, latest.amax(-1), "amax")[row, None]
    return torch.where(latest >= 0, latest, torch.minimum(before, last)).clamp(min=0)


def turns_of(batch: Batch) -> Turns:
    """The table of a batch's turns; every reward of the batch is in it.

    Summed in float64 and rounded to float32, so that equal sums come out equal.
    """
    turn = in_force(batch)
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    M, K = len(ids), int(turn.max()) + 1
    cell = row[:, None] * K + turn
    rewards = batch.rewards.new_zeros(M * K, dtype=torch.float64).index_add_(0, cell.flatten(), batch.rewards.double().flatten())
    sampled = torch.zeros(M * K, dtype=torch.bool, device=row.device)
    sampled[cell[batch.turn_ids >= 0]] = True
    group_ids = torch.zeros_like(ids)
    group_ids[row] = batch.group_ids
    return Turns(rewards.float().view(M, K), sampled.view(M, K), group_ids)


def rewards_to_go(rewards: Tensor, discount: float = 1.0) -> Tensor:
    """R_k = r_k + discount * R_(k+1): [M, K] -> [M, K]. A missing turn counts as a step of time."""
    out = rewards.double().clone()
    for k in range(rewards.shape[1] - 2, -1, -1):
        out[:, k] += discount * out[:, k + 1]
    return out.to(rewards.dtype)


def on_turns(batch: Batch, per_turn: Tensor) -> Tensor:
    """A turn's number on each of its trained tokens, 0 on every other token: [M, K] -> [B, T]."""
    _, row = torch.unique(batch.traj_ids, return_inverse=True)
    return masked(per_turn[row[:, None], batch.turn_ids.clamp(min=0)], batch.loss_mask)


def same_turn(turns: Turns) -> Tensor:
    """Keys that compare a turn with the same turn of its group's other members: [M, K] int64, -1 where not sampled."""
    K = turns.sampled.shape[1]
    _, group = torch.unique(turns.group_ids, return_inverse=True)
    keys = group[:, None] * K + torch.arange(K, device=group.device)
    return torch.where(turns.sampled, keys, -1)


def same_state(batch: Batch) -> Tensor:
    """Keys that compare a turn with every turn of its group that was taken in the same state: [M, K] int64,
    -1 where not sampled.

    The anchor states of GiGPO (arXiv:2505.10978). A state is what stands directly before the turn: the exact
    tokens since the turn before, or since the row's start. Turns of one trajectory may share a
    state, and so may turns of different numbers.
    """
    turns = turns_of(batch)
    _, row = torch.unique(batch.traj_ids, return_inverse=True)
    keys = torch.full_like(turns.sampled, -1, dtype=torch.int64)
    states: dict[tuple[int, tuple[int, ...]], int] = {}
    for b, (ids, turn_ids) in enumerate(zip(batch.token_ids.tolist(), batch.turn_ids.tolist(), strict=True)):
        group, end, current = int(batch.group_ids[b]), 0, -1
        for t, k in enumerate(turn_ids):
            if k < 0:
                continue
            if k != current:
                keys[row[b], k] = states.setdefault((group, tuple(ids[end:t])), len(states))
            current, end = k, t + 1
    return keys


def compare(estimator: Callable[[Tensor, Tensor], Tensor], values: Tensor, keys: Tensor) -> Tensor:
    """An outcome estimator (`advantages.group_centered`, `leave_one_out`, ...) over turns with equal keys.

    Args:
        estimator: (values [N], keys [N]) -> [N].
        values: [M, K].
        keys: [M, K] int64, -1 for turns that take no part.

    Returns:
        [M, K], 0 where a turn takes no part or has nothing to be compared with.
    """
    part = keys >= 0
    out = torch.zeros_like(values)
    out[part] = estimator(values[part], keys[part])
    return out
