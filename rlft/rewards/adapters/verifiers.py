"""Rubrics written for verifiers: weighted functions whose arguments are injected by name."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_origin

from rlft.errors import ConfigError, RewardError
from rlft.rewards.adapters.calling import asked_for, completion, found, importable, noted, one_each
from rlft.rewards.grader import defaults
from rlft.types import Group, Trajectory

GROUP_ARGUMENTS = frozenset({"states", "prompts", "completions", "answers", "tasks", "infos"})
State = dict[str, Any]


@defaults(check=importable)
async def verifiers_rubric(group: Group, *, rubric: Any) -> list[Any]:
    """The weighted sum of a rubric's functions; what each gave is the feedback.

    A function is called with those of `prompt, completion, answer, state, task, info, parser` and of the
    data's fields that it names (one with **kwargs gets all); one that names `prompts, completions, answers, states, tasks` or
    `infos`, or is annotated to return a list, grades the whole group. `state` is one dict per answer, which the
    functions share; `info` and `task` are the data's fields of that name. Any may be async.

    Where a function raises, the answer is reported as not graded; verifiers itself would pay 0.

    Args:
        rubric: "module:attribute" of a rubric (or of a group of rubrics, or of a function that makes one), or
            the object: `funcs`, `weights` and `parser` are read, `class_objects` where there are any.
    """
    states = [_state(trajectory) for trajectory in group.trajectories]
    totals = [0.0] * len(states)
    given: list[dict[str, float]] = [{} for _ in states]
    broken: dict[int, RewardError] = {}
    for part in _rubrics(_made(rubric)):
        objects = {"parser": getattr(part, "parser", None), **getattr(part, "class_objects", {})}
        for fn, weight in zip(part.funcs, _weights(part), strict=True):
            name = getattr(fn, "__name__", type(fn).__name__)
            for i, value in enumerate(await _values(fn, states, objects, name)):
                if isinstance(value, RewardError):
                    broken.setdefault(i, value)
                else:
                    totals[i] += weight * value
                    given[i][name] = value
    return [broken.get(i) or (totals[i], noted(given[i])) for i in range(len(states))]


def _made(rubric: Any) -> Any:
    target = found(rubric)
    made = target if hasattr(target, "funcs") or hasattr(target, "rubrics") else target()
    if not hasattr(made, "funcs") and not hasattr(made, "rubrics"):
        raise ConfigError(f"verifiers_rubric: {rubric!r} is a {type(made).__name__}; expected a rubric with `funcs` and `weights`")
    return made


def _rubrics(rubric: Any) -> Iterator[Any]:
    if hasattr(rubric, "rubrics"):
        for part in rubric.rubrics:
            yield from _rubrics(part)
    elif rubric.funcs:
        yield rubric


def _weights(rubric: Any) -> Sequence[float]:
    return getattr(rubric, "weights", None) or [1.0] * len(rubric.funcs)


async def _values(fn: Callable[..., Any], states: Sequence[State], objects: Mapping[str, Any], name: str) -> list[Any]:
    """A number, or the RewardError that stands for none, for every state."""
    if not _grades_group(fn):
        return list(await asyncio.gather(*(_value(fn, state, objects, name) for state in states)))
    plural = {f"{key}s": [state[key] for state in states] for key in ("prompt", "completion", "answer", "task", "info")}
    offered = {**plural, "states": states, **objects}
    values = one_each(await _awaited(fn(**asked_for(fn, offered))), len(states), f"verifiers_rubric: {name}")
    return [float(value) for value in values]


async def _value(fn: Callable[..., Any], state: State, objects: Mapping[str, Any], name: str) -> float | RewardError:
    own = {key: state[key] for key in ("prompt", "completion", "answer", "task", "info")}
    offered = {**state["input"], **own, "state": state, **objects}
    try:
        return float(await _awaited(fn(**asked_for(fn, offered))))
    except Exception as error:
        return RewardError(f"verifiers_rubric: {name} raised {type(error).__name__}: {error}")


async def _awaited(returned: Any) -> Any:
    return await returned if inspect.isawaitable(returned) else returned


def _grades_group(fn: Callable[..., Any]) -> bool:
    signature = inspect.signature(fn)
    returns = signature.return_annotation
    of_lists = returns is list or get_origin(returns) is list or (isinstance(returns, str) and returns.startswith("list"))
    return bool(signature.parameters.keys() & GROUP_ARGUMENTS) or of_lists


def _state(trajectory: Trajectory) -> State:
    task = trajectory.task
    return {
        "input": dict(task.meta),
        "prompt": list(task.messages),
        "completion": completion(trajectory),
        "answer": "" if task.answer is None else task.answer,
        "info": task.meta.get("info", {}),
        "task": task.meta.get("task", "default"),
        "example_id": task.id,
        "trajectory": [],
        "is_completed": trajectory.status == "completed",
        "is_truncated": trajectory.status == "truncated",
        "reward": None,
        "metrics": {},
    }
