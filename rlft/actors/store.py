"""Graded groups -> the records of a part on disk: every trajectory with what was said, tokens and provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlft.data.stored import as_json, plain_text, write_part
from rlft.learner.rows import Row, to_rows
from rlft.rollout.renderer import Renderer
from rlft.types import Group, Message, Source, Trajectory


@dataclass(frozen=True)
class Origin:
    """Says where trajectories came from."""

    run: str  # its folder
    model: str  # that the run began with
    kind: str  # "step" (trained on), "eval", "greedy" or "first"
    step: int
    worker: int


SeedOf = Callable[[str, int], int | None]  # of a group's id and a trajectory's index in it


def write_groups(path: Path, groups: Sequence[Group], renderer: Renderer, origin: Origin, seed_of: SeedOf) -> None:
    """Write `groups` to `path`. Empty episodes (failed before the first turn) have one record without tokens."""
    write_part(path, _records(groups, renderer, origin, seed_of))


def _records(groups: Sequence[Group], renderer: Renderer, origin: Origin, seed_of: SeedOf) -> Iterator[dict[str, Any]]:
    for group in groups:
        for trajectory in group.trajectories:
            told = {**asdict(origin), **_record(trajectory), "seed": seed_of(group.group_id, trajectory.index)}
            for number, row in enumerate(to_rows(trajectory) or [None]):
                yield {**told, "row": number, **_tokens(row, renderer)}


def _record(trajectory: Trajectory) -> dict[str, Any]:
    task, turns = trajectory.task, trajectory.turns
    return {
        "policy_version": min((turn.completion.policy_version for turn in turns), default=0),
        "group_id": plain_text(trajectory.group_id),
        "index": trajectory.index,
        "task_id": plain_text(task.id),
        "task_meta": as_json(dict(task.meta)),
        "answer": None if task.answer is None else plain_text(str(task.answer)),
        "messages": [_message(message) for message in trajectory.conversation or task.messages],
        "status": trajectory.status,
        "error": plain_text(trajectory.error),
        "ungraded": [f"{part}: {cause}" for part, cause in trajectory.ungraded.items()],
        "feedback": plain_text(trajectory.feedback),
        "outcome": float(trajectory.outcome),
        "reward": float(trajectory.reward),
        "components": _components(trajectory.parts),
        "tags": [turn.tag for turn in turns],
        "turn_rewards": [float(turn.reward) for turn in turns],
        "turn_components": [_components(turn.parts) for turn in turns],
        "finish_reasons": [turn.completion.finish_reason for turn in turns],
        "policy_versions": [turn.completion.policy_version for turn in turns],
    }


def _message(message: Message) -> dict[str, str | None]:
    other = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    content = message.get("content") or ""
    said = content if isinstance(content, str) else as_json(content)
    return {"role": str(message.get("role", "")), "content": plain_text(said), "other": as_json(other) if other else None}


def _components(parts: Mapping[str, float]) -> str:
    return as_json({name: float(value) for name, value in parts.items()})


def _tokens(row: Row | None, renderer: Renderer) -> dict[str, Any]:
    if row is None:
        return {"text": "", "token_ids": [], "sources": [], "turn_ids": [], "loss_mask": [], "logprobs": []}
    return {
        "text": plain_text(renderer.text(row.token_ids.tolist())),
        "token_ids": row.token_ids,
        "sources": row.sources,
        "turn_ids": row.turn_ids,
        "loss_mask": row.sources == Source.POLICY,
        "logprobs": row.logprobs,
    }
