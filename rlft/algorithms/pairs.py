"""Preference pairs among the trajectories of a step: which one wins over which.

Axes: B rows, T tokens, M trajectories, P pairs. Groups are whole on a rank, so pairs need no other rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rlft.algorithms.advantages import outcomes
from rlft.algorithms.base import AdvantageFn, Reduce
from rlft.algorithms.masking import masked
from rlft.types import Batch, Source

Rule = Literal["best_worst", "correct_wrong", "ranked"]
Pairs = tuple[Tensor, Tensor]


def build_pairs(totals: Tensor, group_ids: Tensor, rule: Rule, threshold: float = 1.0, min_gap: float = 0.0) -> Pairs:
    """Pairs within groups by reward: [M], [M] -> chosen [P], rejected [P], indices into M.

    The chosen total is always the larger one, and no trajectory is in two pairs. Equal totals come in
    order of their index, groups in order of their id.

    "best_worst": one pair of a group, when its totals are `min_gap` apart and differ.
    "correct_wrong": the i-th total of at least `threshold` wins over the i-th below it, in order of index.
    "ranked": best over worst, second best over second worst and so on, while they are `min_gap` apart and differ.
    """
    values, pairs = totals.tolist(), []
    for members in _by_group(group_ids):
        if rule == "correct_wrong":
            right = [i for i in members if values[i] >= threshold]
            found = list(zip(right, (i for i in members if values[i] < threshold), strict=False))
        else:
            ranked = sorted(members, key=lambda i: (-values[i], i))
            facing = zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False)
            found = [(i, j) for i, j in facing if values[i] > values[j] and values[i] - values[j] >= min_gap]
        pairs += found[:1] if rule == "best_worst" else found
    return _indices(pairs)


def demonstration_pairs(demonstrated: Sequence[bool], answers: Sequence[Sequence[int]], group_ids: Tensor) -> Pairs:
    """A group's demonstration over its first sample that says something else (SPIN, arXiv:2401.01335).

    Args:
        demonstrated: [M], which trajectories are demonstrations; a group's first one counts.
        answers: [M] token ids of what each says.

    Returns:
        chosen [P], rejected [P], indices into M. A group without either kind has no pair.
    """
    pairs = []
    for members in _by_group(group_ids):
        shown = next((i for i in members if demonstrated[i]), None)
        own = (i for i in members if shown is not None and not demonstrated[i] and list(answers[i]) != list(answers[shown]))
        pairs += [(shown, i) for i in own][:1]
    return _indices(pairs)


def pairs_by_reward(rule: Rule, threshold: float = 1.0, min_gap: float = 0.0, suffix: bool = False) -> AdvantageFn:
    """`build_pairs` on the trajectories that have a trained token, as `join` writes them down."""

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        totals, group_ids = outcomes(batch)
        able = _trained(batch)
        chosen, rejected = (able[side] for side in build_pairs(totals[able], group_ids[able], rule, threshold, min_gap))
        return join(batch, chosen, rejected, totals[chosen] - totals[rejected], suffix)

    return advantages


def pairs_by_demonstration(suffix: bool = False) -> AdvantageFn:
    """`demonstration_pairs` on the trajectories that have a trained token, each pair one unit of reward apart."""

    def advantages(batch: Batch, reduce: Reduce) -> Batch:
        _, group_ids = outcomes(batch)
        able = _trained(batch)
        _, row = torch.unique(batch.traj_ids, return_inverse=True)
        rows = [(row == i).nonzero().flatten() for i in able.tolist()]
        answers = [batch.token_ids[r][batch.loss_mask[r]].tolist() for r in rows]
        demonstrated = [bool((batch.sources[r] == Source.DEMONSTRATION).any()) for r in rows]
        chosen, rejected = (able[side] for side in demonstration_pairs(demonstrated, answers, group_ids[able]))
        return join(batch, chosen, rejected, torch.ones(len(chosen)), suffix)

    return advantages


def join(batch: Batch, chosen: Tensor, rejected: Tensor, gaps: Tensor, suffix: bool = False) -> Batch:
    """Write pairs down: `pair_ids`, and as advantages each side's distance to the pair's mean reward.

    So a token of the chosen trajectory holds gap / 2, one of the rejected -gap / 2, and the sign names the side.
    Trajectories in no pair leave the loss mask.

    Args:
        chosen, rejected: [P] indices of trajectories in order of `traj_ids`.
        gaps: [P] above 0, how much more the chosen one earned.
        suffix: leave out what both sides wrote before they part, see `diverging`.
    """
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    pair = torch.full_like(ids, -1)
    pair[chosen] = pair[rejected] = torch.arange(len(chosen))
    side = torch.zeros(len(ids))
    side[chosen], side[rejected] = gaps / 2, -gaps / 2
    mask = batch.loss_mask & (pair[row] >= 0)[:, None]
    filled = replace(batch, loss_mask=mask, pair_ids=pair[row], advantages=masked(side[row, None], mask))
    if suffix:
        mask = diverging(filled)
        filled = replace(filled, loss_mask=mask, advantages=masked(filled.advantages, mask))
    return filled


def diverging(batch: Batch) -> Tensor:
    """The loss mask from where the two sides of a pair part, [B, T] bool (arXiv:2405.00451).

    Left out are tokens that both sides train, with nothing but equal tokens up to them in the rows that hold
    them: policy and reference give them the same probability on both sides, so they cancel in the difference
    of the two sums. A side's n-th row is compared with the other's n-th, in order of turns. The last trained token of
    the row that ends first stays on both sides, so that none becomes empty where one answer begins with the other.
    """
    mask, T = batch.loss_mask.clone(), batch.token_ids.shape[-1]
    assert batch.pair_ids is not None
    side = masked(batch.advantages, mask).sum(-1)
    turn = torch.where(mask, batch.turn_ids, torch.iinfo(torch.int64).max).amin(-1)
    for pair in batch.pair_ids.unique().tolist():
        mine = mask.any(-1) & (batch.pair_ids == pair)
        rows = [sorted((mine & won).nonzero().flatten().tolist(), key=lambda i: int(turn[i])) for won in (side > 0, side < 0)]
        for i, j in zip(*rows, strict=False):
            both = batch.loss_mask[i] & batch.loss_mask[j]
            same = (batch.token_ids[i] == batch.token_ids[j]).long().cumprod(0).bool()
            end = min(int(batch.loss_mask[k].nonzero().max()) for k in (i, j))
            common = both & same & (torch.arange(T) < end)
            mask[i], mask[j] = mask[i] & ~common, mask[j] & ~common
    return mask


def _trained(batch: Batch) -> Tensor:
    """Numbers of the trajectories with a trained token, in order of `traj_ids`."""
    ids, row = torch.unique(batch.traj_ids, return_inverse=True)
    return torch.bincount(row, batch.loss_mask.sum(-1), len(ids)).nonzero().flatten()


def _by_group(group_ids: Tensor) -> list[list[int]]:
    members: dict[int, list[int]] = {}
    for i, group in enumerate(group_ids.tolist()):
        members.setdefault(group, []).append(i)
    return [members[group] for group in sorted(members)]


def _indices(pairs: Sequence[tuple[int, int]]) -> Pairs:
    chosen, rejected = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(-1)
    return chosen, rejected
