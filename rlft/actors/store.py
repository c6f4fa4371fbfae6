"""Graded groups -> one Parquet file: every trajectory with its text, tokens and provenance.

One record per token row; `datasets.load_dataset("parquet", data_files="runs/x/rollouts/*")` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.learner.rows import Row, to_rows
from rlft.rollout.renderer import Renderer
from rlft.types import Group, Source, Trajectory


def write_groups(path: Path, groups: Sequence[Group], renderer: Renderer, step: int) -> None:
    """Write `groups` to `path`. Empty episodes (failed before the first turn) have one record without tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [
        {**_record(trajectory, step), **_tokens(row, renderer)}
        for group in groups
        for trajectory in group.trajectories
        for row in (to_rows(trajectory) or [None])
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(records), scratch, compression="zstd")
    scratch.rename(path)  # a reader never finds half a file


def _record(trajectory: Trajectory, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "group_id": trajectory.group_id,
        "index": trajectory.index,
        "task_id": trajectory.task.id,
        "answer": str(trajectory.task.answer),
        "actions": [str(turn.action.get("content", "")) for turn in trajectory.turns],
        "tags": [turn.tag for turn in trajectory.turns],
        "turn_rewards": [float(turn.reward) for turn in trajectory.turns],
        "turn_parts": [_pairs(turn.parts) for turn in trajectory.turns],
        "finish_reasons": [turn.completion.finish_reason for turn in trajectory.turns],
        "policy_versions": [turn.completion.policy_version for turn in trajectory.turns],
        "status": trajectory.status,
        "error": trajectory.error,
        "feedback": trajectory.feedback,
        "reward": float(trajectory.reward),
        "outcome": float(trajectory.outcome),
        "parts": _pairs(trajectory.parts),
    }


def _pairs(parts: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "value": float(value)} for name, value in parts.items()]


def _tokens(row: Row | None, renderer: Renderer) -> dict[str, Any]:
    if row is None:
        return {"text": "", "token_ids": [], "sources": [], "turn_ids": [], "loss_mask": [], "logprobs": []}
    return {
        "text": renderer.text(row.token_ids.tolist()),
        "token_ids": row.token_ids,
        "sources": row.sources,
        "turn_ids": row.turn_ids,
        "loss_mask": row.sources == Source.POLICY,
        "logprobs": row.logprobs,
    }
