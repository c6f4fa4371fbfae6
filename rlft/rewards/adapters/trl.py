"""Reward functions written for TRL's trainers."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.errors import TaskError
from rlft.rewards.adapters.calling import asked_for, completion, found, importable, prompt_text, said
from rlft.rewards.grader import defaults
from rlft.types import Group, Task

log = logging.getLogger(__name__)
NOT_COLUMNS = ("prompt", "completion", "completion_ids")  # TRL passes these on its own


@dataclass(frozen=True)
class TrainerState:
    """What there is of TRL's state."""

    global_step: int  # updates of the weights that wrote the newest answer


@defaults(optional=True, check=importable)
def trl_reward(
    group: Group, *, function: str | Callable[..., Any], columns: Mapping[str, str] | None = None, conversational: bool | None = None
) -> Any:
    """What a reward function of TRL gives: it is called with keywords `prompts`, `completions`, `completion_ids`,
    `trainer_state`, `log_extra`, `log_metric` and one list per column of the data set, and returns a list.

    None in that list means that the reward does not apply. What the function hands to `log_extra` and
    `log_metric` goes to the log of this module, at level DEBUG. `environments` are not passed.

    Args:
        function: "module:attribute", or the function; it may be async.
        columns: {name the function expects: "answer", or a field of the data}; the task's answer
            is the column "answer" unless this says otherwise, every other field goes by its own name.
        conversational: whether prompts and completions are lists of messages or texts. Unset: the function's
            annotation of `completions` decides; without one they are texts where the prompt is one user message.

    Raises:
        TaskError: the data has no such field.
    """
    fn, trajectories = found(function), group.trajectories
    tasks = [trajectory.task for trajectory in trajectories]
    messages = _wants_messages(fn, tasks) if conversational is None else conversational
    offered = {
        **_columns(tasks, columns or {}),
        "prompts": [list(task.messages) if messages else _prompt(task) for task in tasks],
        "completions": [completion(t) if messages else said(t) for t in trajectories],
        "completion_ids": [[i for turn in t.turns for i in turn.completion.token_ids] for t in trajectories],
        "trainer_state": TrainerState(max((turn.completion.policy_version for t in trajectories for turn in t.turns), default=0)),
        "log_extra": lambda column, values: log.debug("%s: %s", column, values),
        "log_metric": lambda name, value: log.debug("%s: %s", name, value),
    }
    return fn(**asked_for(fn, offered))


def _wants_messages(fn: Callable[..., Any], tasks: Sequence[Task]) -> bool:
    parameter = inspect.signature(fn).parameters.get("completions")
    annotation = "" if parameter is None or parameter.annotation is parameter.empty else str(parameter.annotation)
    if re.search(r"\bdict\b|Mapping|Message|\bDict\b", annotation):
        return True
    if re.search(r"\[\s*str\s*\]", annotation):
        return False
    return any([message["role"] for message in task.messages] != ["user"] for task in tasks)


def _prompt(task: Task) -> str:
    content = task.messages[0].get("content") if len(task.messages) == 1 else None
    return content if isinstance(content, str) else prompt_text(task)


def _columns(tasks: Sequence[Task], renamed: Mapping[str, str]) -> dict[str, list[Any]]:
    rows = [{**task.meta, **({} if task.answer is None else {"answer": task.answer})} for task in tasks]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    for name, source in renamed.items():
        if source not in columns:
            raise TaskError(f"trl_reward: columns.{name} names {source!r}; the tasks have {sorted(columns)}")
    taken = {source for source in renamed.values()}
    kept = {name: values for name, values in columns.items() if name not in taken and name not in NOT_COLUMNS}
    return {**kept, **{name: columns[source] for name, source in renamed.items()}}
