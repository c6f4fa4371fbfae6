"""What the adapters share: finding the function that an option names, and calling it with what it asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rlft.errors import RewardError
from rlft.names import import_object
from rlft.types import Message, Task, Trajectory

Given = TypeVar("Given")


def found(target: Any) -> Any:
    """What "module:attribute" names, imported once per process; anything else is it already. Raises ConfigError."""
    return _imported(target) if isinstance(target, str) else target


def importable(*, function: Any = None, rubric: Any = None, **_: Any) -> None:
    """Refuse a name that cannot be imported, before a run starts. Raises ConfigError."""
    for target in (function, rubric):
        found(target)


@functools.cache
def _imported(path: str) -> Any:
    return import_object(path)


def asked_for(fn: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the offered arguments that `fn` has a parameter for; all of them if it takes **kwargs."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    return {name: value for name, value in offered.items() if name in names}


def then(returned: Any, convert: Callable[[Any], Given]) -> Any:
    """`convert(returned)`; an awaitable of it where `returned` has to be awaited."""
    if not inspect.isawaitable(returned):
        return convert(returned)

    async def later() -> Given:
        return convert(await returned)

    return later()


def said(trajectory: Trajectory) -> str:
    """The last thing the policy said; a message that only calls tools has no text."""
    return trajectory.text if isinstance(trajectory.text, str) else ""


def completion(trajectory: Trajectory) -> list[Message]:
    """Everything that was said after the prompt, what the environment said included."""
    if not trajectory.turns:
        return []
    first, *later = trajectory.turns
    return [first.action, *(message for turn in later for message in (*turn.observed, turn.action))]


def prompt_text(task: Task) -> str:
    """The texts of a prompt's messages, each ended by a line break, so that an answer can follow."""
    return "".join(f"{message.get('content') or ''}\n" for message in task.messages)


def one_each(values: Any, count: int, what: str) -> list[Any]:
    """Values per answer, from a list, an array or a tensor ([count] or [count, 1]).

    Raises:
        RewardError: another number of them.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, Sequence) or isinstance(listed, str) or len(listed) != count:
        raise RewardError(f"{what} returned {str(listed)[:80]}; expected {count} numbers, one per answer")
    return [value[0] if isinstance(value, Sequence) and len(value) == 1 else value for value in listed]


def noted(named: Mapping[str, Any]) -> str:
    """Numbers by name as feedback text, one a line; what is no number is left out."""
    kinds = (int, float)
    plain = {name: value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value for name, value in named.items()}
    return "\n".join(f"{name} = {float(value):g}" for name, value in plain.items() if isinstance(value, kinds))
