"""Reward functions written for verl."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from rlft.errors import RewardError, TaskError
from rlft.rewards.adapters.calling import asked_for, found, importable, noted, said, then
from rlft.rewards.grader import defaults
from rlft.types import Task, Trajectory


@defaults(check=importable)
def verl_reward(
    task: Task,
    trajectory: Trajectory,
    *,
    function: str | Callable[..., Any],
    data_source: str = "",
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """What `compute_score(data_source, solution_str, ground_truth, extra_info, **kwargs)` gives: a number, or a
    mapping whose "score" counts and whose other numbers become feedback.

    Rows as verl lays them out can be used as they are: without an answer the ground truth is
    `reward_model.ground_truth`. `extra_info` is the data's field of that name, or else all fields without
    a place of their own; "num_turns" and "rollout_reward_scores" are added to it.

    Args:
        function: "module:attribute", or the function; it may be async.
        data_source: the text for `data_source`; "": the data's field of that name.
        kwargs: further keyword arguments.

    Raises:
        TaskError: the task has no ground truth.
        RewardError: a mapping without "score".
    """
    fn, meta = found(function), task.meta
    truth = task.answer if task.answer is not None else (meta.get("reward_model") or {}).get("ground_truth")
    if truth is None:
        raise TaskError(f"verl_reward: task {task.id!r} has neither an answer nor reward_model.ground_truth; set data.answer")
    offered = {
        "data_source": data_source or meta.get("data_source", ""),
        "solution_str": said(trajectory),
        "ground_truth": truth,
        "extra_info": {**_extra_info(meta), "num_turns": len(trajectory.turns), "rollout_reward_scores": {}},
        **(kwargs or {}),
    }
    return then(fn(**asked_for(fn, offered)), _verdict)


def _extra_info(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A copy: functions written for verl may write into it."""
    given = meta.get("extra_info")
    fields = given if isinstance(given, Mapping) else {k: v for k, v in meta.items() if k not in ("data_source", "reward_model")}
    return copy.deepcopy(dict(fields))


def _verdict(returned: Any) -> Any:
    if not isinstance(returned, Mapping):
        return returned
    if "score" not in returned:
        raise RewardError(f"verl_reward: the function returned {sorted(returned)}; expected a number or a mapping with 'score'")
    return returned["score"], noted({name: value for name, value in returned.items() if name != "score"})
