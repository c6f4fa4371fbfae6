"""Trajectories -> token rows -> one padded Batch -> micro-batches of a token budget.

Axes: B rows, T tokens. Rows are made where the tokens were sampled and padded where they
are trained on; the driver sees neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from rlft.types import Batch, Source, Trajectory, Turn

PAD_MULTIPLE = 8


@dataclass(frozen=True)
class Row:
    """One trained token sequence; the arrays are aligned, [T] each."""

    token_ids: np.ndarray  # int32
    sources: np.ndarray  # int8, values of Source
    turn_ids: np.ndarray  # int16, -1 where the policy did not write
    rewards: np.ndarray  # float32, on the last token of a turn
    logprobs: np.ndarray  # float32, 0 where the policy did not write
    traj_id: int  # index of the trajectory in its group
    group_id: str
    policy_version: int
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.token_ids)


def to_rows(trajectory: Trajectory) -> list[Row]:
    """Flatten turns into rows (the prefix rule): one row while each context extends the
    last, a new row wherever history was rewritten. A turn's reward lies on its last sampled
    token, and so does the trajectory's on the last turn's. A turn that sampled nothing leaves
    its reward on the last token sampled before it in the row, or else on the row's last token.
    Raises ValueError when a turn's streams are not aligned."""
    open_rows: list[_OpenRow] = []
    for k, turn in enumerate(trajectory.turns):
        _check_aligned(turn, f"{trajectory.group_id}/{trajectory.index}, turn {k}")
        context = list(turn.prompt_ids)
        done = len(open_rows[-1].token_ids) if open_rows else 0
        if not open_rows or context[:done] != open_rows[-1].token_ids:
            open_rows.append(_OpenRow())
            done = 0
        last = k == len(trajectory.turns) - 1
        reward = turn.reward + (trajectory.reward if last else 0.0)
        open_rows[-1].add_context(context[done:], turn.sources[done : len(context)])
        open_rows[-1].add_completion(turn.completion.token_ids, turn.sources[len(context) :], turn.completion.logprobs, k, reward)
    version = min((turn.completion.policy_version for turn in trajectory.turns), default=0)
    return [row.close(trajectory, version) for row in open_rows]


def _check_aligned(turn: Turn, where: str) -> None:
    prompt, sampled = len(turn.prompt_ids), len(turn.completion.token_ids)
    sources, logprobs = len(turn.sources), len(turn.completion.logprobs)
    if sources != prompt + sampled:
        raise ValueError(f"{where}: {prompt} + {sampled} tokens need {prompt + sampled} sources, got {sources}")
    if logprobs != sampled:
        raise ValueError(f"{where}: {sampled} sampled tokens need {sampled} logprobs, got {logprobs}")


class _OpenRow:
    """The row that is being written; its lists grow together."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.sources: list[int] = []
        self.turn_ids: list[int] = []
        self.rewards: list[float] = []
        self.logprobs: list[float] = []

    def add_context(self, ids: Sequence[int], sources: Sequence[int]) -> None:
        self._extend(ids, sources, [-1] * len(ids), [0.0] * len(ids), [0.0] * len(ids))

    def add_completion(self, ids: Sequence[int], sources: Sequence[int], logprobs: Sequence[float], turn: int, reward: float) -> None:
        # Hints stand inside a completion without having been sampled.
        sampled = [source == Source.POLICY for source in sources]
        turn_ids = [turn if yes else -1 for yes in sampled]
        logprobs = [x if yes else 0.0 for x, yes in zip(logprobs, sampled, strict=True)]
        self._extend(ids, sources, turn_ids, [0.0] * len(ids), logprobs)
        last_sampled = max((t for t, k in enumerate(self.turn_ids) if k >= 0), default=-1)
        self.rewards[last_sampled] += reward

    def _extend(
        self, ids: Sequence[int], sources: Sequence[int], turn_ids: list[int], rewards: list[float], logprobs: Sequence[float]
    ) -> None:
        self.token_ids += ids
        self.sources += sources
        self.turn_ids += turn_ids
        self.rewards += rewards
        self.logprobs += logprobs

    def close(self, trajectory: Trajectory, version: int) -> Row:
        return Row(
            token_ids=np.asarray(self.token_ids, np.int32),
            sources=np.asarray(self.sources, np.int8),
            turn_ids=np.asarray(self.turn_ids, np.int16),
            rewards=np.asarray(self.rewards, np.float32),
            logprobs=np.asarray(self.logprobs, np.float32),
            traj_id=trajectory.index,
            group_id=trajectory.group_id,
            policy_version=version,
            truncated=trajectory.status == "truncated",
        )


def demonstration_row(prompt_ids: Sequence[int], target_ids: Sequence[int], group_id: str) -> Row:
    """A supervised row: the target counts in the loss, as turn 0 of its own group."""
    total = len(prompt_ids) + len(target_ids)
    return Row(
        token_ids=np.asarray([*prompt_ids, *target_ids], np.int32),
        sources=np.asarray([Source.PROMPT] * len(prompt_ids) + [Source.DEMONSTRATION] * len(target_ids), np.int8),
        turn_ids=np.asarray([-1] * len(prompt_ids) + [0] * len(target_ids), np.int16),
        rewards=np.zeros(total, np.float32),
        logprobs=np.zeros(total, np.float32),
        traj_id=0,
        group_id=group_id,
        policy_version=0,
    )


def collate(rows: Sequence[Row], pad_id: int) -> Batch:
    """Pad rows to a common length. Trajectories and groups are numbered in order of
    appearance. A token is trained when it belongs to a turn: neither padding, recognised by
    its id, nor the policy's earlier words, repeated in a rewritten context, are mistaken."""
    trajectories: dict[tuple[str, int], int] = {}
    groups: dict[str, int] = {}
    traj_ids = [trajectories.setdefault((row.group_id, row.traj_id), len(trajectories)) for row in rows]
    group_ids = [groups.setdefault(row.group_id, len(groups)) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    T = -(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE

    def pad(arrays: Sequence[np.ndarray], fill: float, dtype: torch.dtype) -> torch.Tensor:
        out = torch.full((len(rows), T), fill, dtype=dtype)
        for i, array in enumerate(arrays):
            out[i, : len(array)] = torch.from_numpy(np.array(array))
        return out

    turn_ids = pad([row.turn_ids for row in rows], -1, torch.int64)
    trained = turn_ids >= 0
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
    )


def empty_batch(pad_id: int) -> Batch:
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
    )
    return collate([row], pad_id)


def micro_batches(batch: Batch, max_tokens: int, at_least: int = 1) -> list[Batch]:
    """Cut a batch into micro-batches of at most `max_tokens` padded tokens.

    Rows are sorted by length first, so each micro-batch is padded to its own longest row
    only. A single row beyond the budget stands alone. Micro-batches without a trained
    token are added until there are `at_least` as many (every rank must run the same number).
    """
    lengths = batch.attention_mask.sum(-1)
    order = torch.argsort(lengths, stable=True).tolist()
    chunks: list[list[int]] = [[]]
    for row in order:
        width = _padded(int(lengths[row]))
        if chunks[-1] and width * (len(chunks[-1]) + 1) > max_tokens:
            chunks.append([])
        chunks[-1].append(row)
    parts = [_narrow(batch.rows(chunk)) for chunk in chunks if chunk]
    while len(parts) < at_least:
        parts.append(_without_loss(_narrow(batch.rows([order[0]]))))
    return parts


def minibatches(batch: Batch, number: int, generator: torch.Generator) -> list[Batch]:
    """Split a batch into `number` parts of whole trajectories, in random order. With fewer
    trajectories than parts the surplus parts hold a row without a trained token."""
    if number == 1:
        return [batch]
    ids = batch.traj_ids.unique()
    shuffled = ids[torch.randperm(len(ids), generator=generator)]
    parts = []
    for chosen in shuffled.tensor_split(number):
        rows = torch.isin(batch.traj_ids, chosen)
        parts.append(batch.rows(rows) if rows.any() else _without_loss(batch.rows([0])))
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


def _padded(length: int) -> int:
    return max(PAD_MULTIPLE, -(-length // PAD_MULTIPLE) * PAD_MULTIPLE)


def _narrow(batch: Batch) -> Batch:
    width = min(batch.token_ids.shape[1], _padded(int(batch.attention_mask.sum(-1).max())))
    return batch.map(lambda x: x[:, :width] if x.dim() == 2 else x)


def _without_loss(batch: Batch) -> Batch:
    nothing = torch.zeros_like(batch.loss_mask)
    weights = None if batch.loss_weights is None else torch.zeros_like(batch.loss_weights)
    return replace(batch, loss_mask=nothing, loss_weights=weights)
