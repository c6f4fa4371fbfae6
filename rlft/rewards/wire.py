"""Groups as JSON and verdicts back: what a reward behind HTTP is sent, and what it answers.

One request holds whole groups. Sampled ids stay at home unless they are asked for; how many there are goes along.

    POST <url>  {"version": 1, "groups": [group]}
    ->          {"verdicts": [[{"value": 1.0, "feedback": ""} or {"error": why}]]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rlft.errors import RewardError
from rlft.types import Completion, FinishReason, Group, Status, Task, Trajectory, Turn

VERSION = 1


def encode_groups(groups: Sequence[Group], tokens: bool = False) -> bytes:
    """A request. Raises RewardError where an answer or field of a task is no JSON value."""
    table = {"version": VERSION, "groups": [_group_table(group, tokens) for group in groups]}
    try:
        return json.dumps(table, allow_nan=False).encode()
    except ValueError as error:
        raise RewardError(f"a trajectory holds a number that JSON cannot carry: {error}") from None


def decode_groups(table: Any) -> list[Group]:
    """The groups of a request that was parsed already.

    Where ids were not sent a turn has no `prompt_ids`, and negative `token_ids`, so that `num_sampled` is right.

    Raises:
        RewardError: it does not follow the format; the message names the first fields that do not.
    """
    try:
        request = _Request.model_validate(table)
    except ValidationError as error:
        said = [f"{'.'.join(map(str, found['loc']))}: {found['msg']}" for found in error.errors(include_url=False)[:3]]
        raise RewardError(f"not a request of version {VERSION}: {'; '.join(said)}") from None
    return [_group(group) for group in request.groups]


def without_tokens(group: Group) -> Group:
    """A group as it arrives where no ids were sent."""
    return decode_groups(json.loads(encode_groups([group])))[0]


def encode_verdicts(groups: Sequence[Group]) -> bytes:
    """The answer to a request: what every graded trajectory earned, or why it could not be graded."""
    verdicts = [
        [{"error": t.error} if t.status == "failed" else {"value": t.reward, "feedback": t.feedback} for t in group.trajectories]
        for group in groups
    ]
    return json.dumps({"verdicts": verdicts}, allow_nan=False).encode()


def verdicts_of(table: Any, counts: Sequence[int], url: str) -> list[list[Any]]:
    """(value, feedback) or a RewardError for every trajectory, `counts` of them in the groups.

    Raises:
        RewardError: the answer does not follow the format, or grades another number of trajectories.
    """
    groups = table.get("verdicts") if isinstance(table, Mapping) else None
    if not isinstance(groups, list) or [len(group) if isinstance(group, list) else None for group in groups] != list(counts):
        raise RewardError(f"{url}: expected verdicts of {list(counts)} trajectories, got {str(table)[:200]}")
    return [[_verdict(found, url) for found in group] for group in groups]


def _verdict(found: Any, url: str) -> Any:
    if isinstance(found, Mapping) and isinstance(found.get("error"), str):
        return RewardError(f"{url}: {found['error']}")
    value, feedback = (found.get("value"), found.get("feedback", "")) if isinstance(found, Mapping) else (None, "")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not isinstance(feedback, str):
        raise RewardError(f"{url}: {str(found)[:200]} is no verdict; expected a finite value and feedback text, or an error")
    return float(value), feedback


def plain(value: Any, where: str) -> Any:
    """`value` made of dicts, lists, texts, finite numbers, booleans and None; tuples become lists.

    Raises:
        RewardError: it holds anything else, which JSON would change or refuse.
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    if isinstance(value, Mapping) and all(type(key) is str for key in value):
        return {key: plain(item, where) for key, item in value.items()}
    raise RewardError(f"{where} holds {str(value)[:80]!r} ({type(value).__name__}), which JSON cannot carry; change it in the data")


def _group_table(group: Group, tokens: bool) -> dict[str, Any]:
    tasks: list[Task] = []
    for trajectory in group.trajectories:
        if trajectory.task not in tasks:
            tasks.append(trajectory.task)
    return {
        "group_id": group.group_id,
        "tasks": [_task_table(task) for task in tasks],
        "trajectories": [{"task": tasks.index(t.task), **_trajectory_table(t, tokens)} for t in group.trajectories],
    }


def _task_table(task: Task) -> dict[str, Any]:
    said = {"messages": list(task.messages), "answer": task.answer, "meta": task.meta}
    fields = {name: plain(value, f"task {task.id!r}: {name}") for name, value in said.items()}
    return {"id": task.id, **fields, "variants": [_task_table(variant) for variant in task.variants]}


def _trajectory_table(trajectory: Trajectory, tokens: bool) -> dict[str, Any]:
    return {
        "index": trajectory.index,
        "status": trajectory.status,
        "reward": trajectory.reward,
        "parts": dict(trajectory.parts),
        "feedback": trajectory.feedback,
        "error": trajectory.error,
        "ungraded": dict(trajectory.ungraded),
        "turns": [_turn_table(turn, tokens) for turn in trajectory.turns],
    }


def _turn_table(turn: Turn, tokens: bool) -> dict[str, Any]:
    sampled = turn.completion
    ids = {
        "prompt_ids": list(map(int, turn.prompt_ids)),
        "token_ids": list(map(int, sampled.token_ids)),
        "logprobs": list(map(float, sampled.logprobs)),
        "sources": list(map(int, turn.sources)),
    }
    return {
        "action": plain(turn.action, "a message"),
        "observed": plain(turn.observed, "a message"),
        "reward": turn.reward,
        "tag": turn.tag,
        "finish_reason": sampled.finish_reason,
        "policy_version": sampled.policy_version,
        "num_sampled": len(sampled.token_ids),
        **({"opened": turn.opened} if turn.opened else {}),
        **(ids if tokens else {}),
    }


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Task(_Table):
    id: str
    messages: list[dict[str, Any]]
    answer: Any = None
    meta: dict[str, Any] = {}
    variants: list[_Task] = []


class _Turn(_Table):
    action: dict[str, Any]
    observed: list[dict[str, Any]] = []
    reward: float = 0.0
    tag: str = ""
    opened: str = ""
    finish_reason: FinishReason = "stop"
    policy_version: int = 0
    num_sampled: int = Field(default=0, ge=0)
    prompt_ids: list[int] | None = None
    token_ids: list[int] | None = None
    logprobs: list[float] | None = None
    sources: list[int] | None = None


class _Trajectory(_Table):
    task: int = Field(ge=0)  # place in the group's tasks
    index: int = 0
    status: Status = "completed"
    reward: float = 0.0
    parts: dict[str, float] = {}
    feedback: str = ""
    error: str = ""
    ungraded: dict[str, str] = {}
    turns: list[_Turn]


class _Group(_Table):
    group_id: str = ""
    tasks: list[_Task]
    trajectories: list[_Trajectory]


class _Request(_Table):
    version: Literal[1]
    groups: list[_Group]


def _group(table: _Group) -> Group:
    tasks = [_task(task) for task in table.tasks]
    for trajectory in table.trajectories:
        if trajectory.task >= len(tasks):
            raise RewardError(f"group {table.group_id!r}: a trajectory names task {trajectory.task}; there are {len(tasks)}")
    return Group(table.group_id, tuple(_trajectory(t, tasks[t.task], table.group_id) for t in table.trajectories))


def _task(table: _Task) -> Task:
    return Task(table.id, tuple(table.messages), table.answer, table.meta, tuple(_task(variant) for variant in table.variants))


def _trajectory(table: _Trajectory, task: Task, group_id: str) -> Trajectory:
    return Trajectory(
        task,
        table.index,
        tuple(_turn(turn) for turn in table.turns),
        table.status,
        group_id,
        table.reward,
        table.parts,
        table.feedback,
        table.error,
        table.ungraded,
    )


def _turn(table: _Turn) -> Turn:
    ids = range(-table.num_sampled, 0) if table.token_ids is None else table.token_ids
    sampled = Completion(ids, table.logprobs or [], table.finish_reason, table.policy_version)
    return Turn(
        table.prompt_ids or [],
        sampled,
        table.action,
        table.sources or [],
        table.reward,
        table.tag,
        tuple(table.observed),
        opened=table.opened,
    )
