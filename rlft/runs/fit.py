"""Which tasks a run can use: those that the chat template renders, and that leave room for an answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from rlft.config import RunConfig
from rlft.data.sources import BadRow, describe
from rlft.envs.base import EnvFn, ToolSpec
from rlft.errors import ConfigError, DataError, RenderError, explain
from rlft.report.progress import shown
from rlft.rollout.renderer import Renderer
from rlft.rollout.templates import TOOL_ROLE
from rlft.types import Task

CHUNK = 1024  # tasks that are rendered at once


class Offered(NamedTuple):
    """What an environment offers the policy, and in which roles it answers."""

    tools: Sequence[ToolSpec]
    roles: Sequence[str]


class Fitted(NamedTuple):
    """The tasks that fit, those that do not, and what else a person should know ("" for nothing)."""

    tasks: list[Task]
    bad_rows: list[BadRow]
    note: str


def offered(make_env: EnvFn, task: Task) -> Offered:
    """Tools of an environment, and the roles it answers in: those it names in `roles`, else "tool" with tools and "user" without.

    They are read from its class; one is made, and closed, only where the class does not say which tools it has.

    Raises:
        ConfigError: an environment that cannot be made or closed.
    """
    said: Any = make_env.func if isinstance(make_env, partial) else make_env
    if isinstance(said, type) and isinstance(inspect.getattr_static(said, "tools", None), list | tuple):
        tools, named = list(said.tools), getattr(said, "roles", None)
    else:
        try:
            env = make_env(task)
            tools, named = list(getattr(env, "tools", ())), getattr(env, "roles", None)
            closing = env.close() if hasattr(env, "close") else None
            if inspect.isawaitable(closing):
                asyncio.run(_wait(closing))
        except Exception as error:
            raise ConfigError(f"env: making and closing one for task {task.id} raised {explain(error)}") from error
    return Offered(tools, tuple(named) if named is not None else (TOOL_ROLE,) if tools else ("user",))


async def _wait(closing: Any) -> None:
    await closing


def fit_context(tasks: Sequence[Task], renderer: Renderer, config: RunConfig, tools: Sequence[ToolSpec] = ()) -> Fitted:
    """Set aside tasks that the chat template does not render, or whose prompt, tools included, leaves no room for an answer.

    Those that leave less than `rollout.max_tokens` are kept and counted.

    Raises:
        DataError: none is left.
    """
    limit, wanted = config.rollout.max_model_len, config.rollout.max_tokens
    fitting, bad, tight, refused, least = [], [], 0, 0, wanted
    for number, task, found in shown(_rendered(tasks, renderer, tools, limit - wanted), "prompts rendered", len(tasks)):
        broken = next((length for length in found if isinstance(length, RenderError)), None)
        length = max(length for length in found if isinstance(length, int)) if broken is None else 0
        if broken is not None:
            refused += 1
            bad.append(BadRow(f"task {task.id}", number, "prompt", str(broken)))
        elif length < limit:
            fitting.append(task)
            tight += limit - length < wanted
            least = min(least, limit - length)
        else:
            with_tools = f", {len(tools)} tools included," if tools else ""
            why = f"{length} tokens{with_tools} leave no room in rollout.max_model_len {limit}"
            bad.append(BadRow(f"task {task.id}", number, "prompt", why))
    if bad and not fitting:
        if not refused:
            raise DataError(f"every prompt is longer than the context: {bad[0]}; raise rollout.max_model_len or shorten the prompts")
        raise DataError(f"no prompt is left that the chat template renders and the context holds: {describe(bad)}")
    told = f"leave less room than rollout.max_tokens {wanted} in rollout.max_model_len {limit}, the least {least} tokens"
    return Fitted(fitting, bad, f"{tight} of {len(fitting)} prompts {told}; their answers may be cut" if tight else "")


def _rendered(
    tasks: Sequence[Task], renderer: Renderer, tools: Sequence[ToolSpec], enough: int
) -> Iterable[tuple[int, Task, list[int | RenderError]]]:
    """Each task with its number and its prompts' lengths in tokens, its own and its variants'; up to `enough` a bound may stand for one."""
    for at in range(0, len(tasks), CHUNK):
        chunk = tasks[at : at + CHUNK]
        lengths = iter(renderer.lengths([way.messages for task in chunk for way in (task, *task.variants)], tools, enough))
        for number, task in enumerate(chunk, start=at + 1):
            yield number, task, [next(lengths) for _ in range(1 + len(task.variants))]


def fit_demonstrations(tasks: Sequence[Task], renderer: Renderer) -> Fitted:
    """Set aside tasks whose answer cannot be taught behind its prompt.

    Raises:
        DataError: a task without an answer, or none is left.
    """
    fitting, bad = [], []
    for number, task, why in shown(_taught(tasks, renderer), "demonstrations rendered", len(tasks)):
        if why:
            bad.append(BadRow(f"task {task.id}", number, "answer", why))
        else:
            fitting.append(task)
    if bad and not fitting:
        raise DataError(f"no demonstration is left that the chat template renders:\n{describe(bad)}")
    return Fitted(fitting, bad, "")


def _taught(tasks: Sequence[Task], renderer: Renderer) -> Iterable[tuple[int, Task, str]]:
    """Each task with its number, and why its answer cannot be taught."""
    for at in range(0, len(tasks), CHUNK):
        chunk = tasks[at : at + CHUNK]
        made = renderer.demonstrations([(answer_of(task), task.messages) for task in chunk])
        for number, (task, found) in enumerate(zip(chunk, made, strict=True), start=at + 1):
            yield number, task, str(found) if isinstance(found, RenderError) else ""


def answer_of(task: Task) -> str:
    """The text that a demonstration teaches. Raises DataError."""
    if task.answer is None:
        raise DataError(f"task {task.id} has no answer, the text to learn; name its field in data.answer")
    return str(task.answer)
