"""Token rows -> one padded Batch -> micro-batches of a token budget, on a learner rank.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from rlft.errors import ConfigError
from rlft.learner.rows import Row
from rlft.types import Batch, Source, Unit


def collate(rows: Sequence[Row], pad_id: int, tags: Sequence[str] = (), parts: Sequence[str] = ()) -> Batch:
    """Pad rows to a common length. Trajectories and groups are numbered in order of
    appearance. A token is trained when it belongs to a turn: neither padding, recognised by
    its id, nor the policy's earlier words, repeated in a rewritten context, are mistaken.

    Args:
        tags: train only on turns with one of these tags; empty for all turns.
        parts: reward parts that become `Batch.parts`, in this order.

    Raises:
        ConfigError: a trajectory has no reward part of that name.
    """
    trajectories: dict[tuple[str, int], int] = {}
    groups: dict[str, int] = {}
    traj_ids = [trajectories.setdefault((row.group_id, row.traj_id), len(trajectories)) for row in rows]
    group_ids = [groups.setdefault(row.group_id, len(groups)) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    T = int(lengths.max())

    def pad(arrays: Sequence[np.ndarray], fill: float, dtype: torch.dtype) -> torch.Tensor:
        out = torch.full((len(rows), T), fill, dtype=dtype)
        for i, array in enumerate(arrays):
            out[i, : len(array)] = torch.from_numpy(np.array(array))
        return out

    turn_ids = pad([row.turn_ids for row in rows], -1, torch.int64)
    trained = turn_ids >= 0 if not tags else pad([_tagged(row, tags) for row in rows], 0, torch.bool)
    trained[:, 0] = False  # nothing predicts the first token
    return Batch(
        token_ids=pad([row.token_ids for row in rows], pad_id, torch.int64),
        attention_mask=torch.arange(T) < lengths[:, None],
        loss_mask=trained,
        sources=pad([row.sources for row in rows], Source.PADDING, torch.int64),
        turn_ids=turn_ids,
        rewards=pad([row.rewards for row in rows], 0.0, torch.float32),
        rollout_logprobs=pad([row.logprobs for row in rows], 0.0, torch.float32),
        traj_ids=torch.tensor(traj_ids),
        group_ids=torch.tensor(group_ids),
        policy_versions=torch.tensor([row.policy_version for row in rows]),
        truncated=torch.tensor([row.truncated for row in rows]),
        baselines=torch.tensor([row.baseline for row in rows], dtype=torch.float32),
        parts=torch.tensor([_chosen_parts(row, parts) for row in rows]) if parts else None,
    )


def _tagged(row: Row, tags: Sequence[str]) -> np.ndarray:
    """Which tokens of a row stand in turns with one of the tags: [T] bool."""
    return np.isin(row.turn_ids, [k for k, tag in enumerate(row.tags) if tag in tags])


def _chosen_parts(row: Row, names: Sequence[str]) -> list[float]:
    if missing := [name for name in names if name not in row.parts]:
        raise ConfigError(f"algorithm: no reward part {missing[0]!r}; a trajectory has {sorted(row.parts) or 'none'}")
    return [float(row.parts[name]) for name in names]


def empty_batch(pad_id: int, parts: Sequence[str] = ()) -> Batch:
    """One row without a trained token: what a rank without work runs, so that it takes
    part in every collective operation."""
    nothing = np.zeros(2)
    row = Row(
        token_ids=np.full(2, pad_id, np.int32),
        sources=np.full(2, Source.PADDING, np.int8),
        turn_ids=np.full(2, -1, np.int16),
        rewards=nothing.astype(np.float32),
        logprobs=nothing.astype(np.float32),
        traj_id=0,
        group_id="",
        policy_version=0,
        parts=dict.fromkeys(parts, 0.0),
    )
    return collate([row], pad_id, parts=parts)


def micro_batches(batch: Batch, max_tokens: int, at_least: int = 1, unit: Unit = "row") -> list[Batch]:
    """Cut a batch into micro-batches of at most `max_tokens` padded tokens.

    Rows of one `unit` (a trajectory, a preference pair) stay together; a unit beyond the budget
    stands alone. Units are sorted by their longest row first, so each micro-batch is padded to
    little more than its own rows. Micro-batches without a trained token are added until there
    are `at_least` as many (every rank must run the same number).
    """
    lengths = batch.attention_mask.sum(-1)
    kept = units(batch, unit)
    widths = [int(lengths[rows].max()) for rows in kept]
    order = sorted(range(len(kept)), key=lambda i: widths[i])
    chunks: list[list[int]] = [[]]
    for i in order:
        if chunks[-1] and widths[i] * (len(chunks[-1]) + len(kept[i])) > max_tokens:
            chunks.append([])
        chunks[-1] += kept[i]
    parts = [_narrow(batch.rows(chunk)) for chunk in chunks if chunk]
    while len(parts) < at_least:
        parts.append(_without_loss(_narrow(batch.rows(kept[order[0]]))))
    return parts


def units(batch: Batch, unit: Unit) -> list[list[int]]:
    """Row numbers of every unit. Trajectories without a pair are units of their own."""
    if unit == "row":
        return [[row] for row in range(len(batch.traj_ids))]
    found: dict[tuple[str, int], list[int]] = {}
    pairs = batch.pair_ids.tolist() if unit == "pair" and batch.pair_ids is not None else [-1] * len(batch.traj_ids)
    for row, (traj, pair) in enumerate(zip(batch.traj_ids.tolist(), pairs, strict=True)):
        found.setdefault(("trajectory", traj) if pair < 0 else ("pair", pair), []).append(row)
    return list(found.values())


def minibatches(batch: Batch, number: int, generator: torch.Generator) -> list[Batch]:
    """Split a batch into `number` parts of whole trajectories (whole pairs, where there are any),
    in random order. With fewer of them than parts the surplus parts hold a row without a trained token."""
    if number == 1:
        return [batch]
    kept = units(batch, "pair")
    shuffled = torch.randperm(len(kept), generator=generator)
    parts = []
    for chosen in shuffled.tensor_split(number):
        rows = sorted(row for i in chosen.tolist() for row in kept[i])
        parts.append(batch.rows(rows) if rows else _without_loss(batch.rows([0])))
    return parts


def assign(num_tokens: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Give each item (a whole group) to a rank, balanced by tokens: longest first, each to
    the rank with the least so far. Returns item indices per rank, in input order."""
    loads, owned = [0] * num_ranks, [[] for _ in range(num_ranks)]
    for item in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        rank = min(range(num_ranks), key=lambda r: (loads[r], r))
        loads[rank] += num_tokens[item]
        owned[rank].append(item)
    return [sorted(items) for items in owned]


def _narrow(batch: Batch) -> Batch:
    width = int(batch.attention_mask.sum(-1).max())
    return batch.map_tokens(lambda x: x[:, :width])


def _without_loss(batch: Batch) -> Batch:
    nothing = torch.zeros_like(batch.loss_mask)
    weights = None if batch.loss_weights is None else torch.zeros_like(batch.loss_weights)
    return replace(batch, loss_mask=nothing, loss_weights=weights)
