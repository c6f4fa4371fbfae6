"""Trajectories -> token rows, numpy arrays that hold every token's provenance.

Axes: B rows, T tokens. Rows are made where the tokens were sampled and padded where they
are trained on (batching.py); the driver sees neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from rlft.types import Source, Trajectory, Turn


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
    tags: tuple[str, ...] = ()  # of every turn of the trajectory
    parts: Mapping[str, float] = field(default_factory=dict)  # of the trajectory's reward
    baseline: float = math.nan  # what a greedy answer to the task earned

    def __len__(self) -> int:
        return len(self.token_ids)


def to_rows(trajectory: Trajectory, baseline: float = math.nan) -> list[Row]:
    """Flatten turns into rows (the prefix rule): one row while each context extends the
    last, a new row wherever history was rewritten. A turn's reward lies on its last sampled
    token, and so does the trajectory's on the last turn's. A turn that sampled nothing (an injected
    first attempt) leaves its reward on the last token sampled before it in the row, or else on the row's last token.
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
    return [row.close(trajectory, version, baseline) for row in open_rows]


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

    def close(self, trajectory: Trajectory, version: int, baseline: float) -> Row:
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
            tags=tuple(turn.tag for turn in trajectory.turns),
            parts=dict(trajectory.parts),
            baseline=baseline,
        )


def demonstration_row(prompt_ids: Sequence[int], target_ids: Sequence[int], group_id: str, traj_id: int = 0, reward: float = 0.0) -> Row:
    """A supervised row: the target counts in the loss, as the only turn of a trajectory of the group."""
    total = len(prompt_ids) + len(target_ids)
    rewards = np.zeros(total, np.float32)
    rewards[-1] = reward
    return Row(
        token_ids=np.asarray([*prompt_ids, *target_ids], np.int32),
        sources=np.asarray([Source.PROMPT] * len(prompt_ids) + [Source.DEMONSTRATION] * len(target_ids), np.int8),
        turn_ids=np.asarray([-1] * len(prompt_ids) + [0] * len(target_ids), np.int16),
        rewards=rewards,
        logprobs=np.zeros(total, np.float32),
        traj_id=traj_id,
        group_id=group_id,
        policy_version=0,
        tags=("",),
    )


STREAMS = ("token_ids", "sources", "turn_ids", "rewards", "logprobs")
OWNED = tuple(f.name for f in fields(Row) if f.name not in STREAMS)


@dataclass(frozen=True)
class RowBlock:
    """Rows one behind the other, one array per stream: what moves between processes."""

    lengths: np.ndarray  # [B] int32
    streams: tuple[np.ndarray, ...]  # those of STREAMS: [sum of lengths] each
    owners: tuple[tuple[Any, ...], ...]  # [B] of the fields of a row that are not streams, in order


def pack_rows(rows: Sequence[Row]) -> RowBlock:
    """Rows as a block; `unpack_rows` gives them back."""
    streams = [tuple(getattr(row, name) for name in STREAMS) for row in rows]
    return RowBlock(
        lengths=np.asarray([len(row) for row in rows], np.int32),
        streams=tuple(np.concatenate(arrays) for arrays in zip(*streams, strict=True)),
        owners=tuple(tuple(getattr(row, name) for name in OWNED) for row in rows),
    )


def unpack_rows(block: RowBlock) -> list[Row]:
    """The rows of a block, as views of its arrays."""
    ends = np.cumsum(block.lengths).tolist()
    starts = [0, *ends[:-1]]
    rows = []
    for start, end, owner in zip(starts, ends, block.owners, strict=False):
        streams = {name: stream[start:end] for name, stream in zip(STREAMS, block.streams, strict=True)}
        rows.append(Row(**streams, **dict(zip(OWNED, owner, strict=True))))
    return rows
