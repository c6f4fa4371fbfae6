"""The run file's [reward] table, or plain functions, as one grader."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from rlft.config import bind, import_object
from rlft.errors import ConfigError
from rlft.rewards import builtin
from rlft.rewards.grader import Grader, Term

BUILTIN: dict[str, Callable[..., float]] = {
    "exact_match": builtin.exact_match,
    "number_match": builtin.number_match,
    "regex": builtin.regex,
    "format_tags": builtin.format_tags,
    "length": builtin.length,
    "overlong": builtin.overlong,
}


def compose(reward: Callable[..., Any] | Mapping[Any, Any]) -> Grader:
    """The grader that a table describes.

    Args:
        reward: one function (weight 1), or {reward: weight} or {reward: {"weight": w, option: value}},
            where a reward is a built-in name, "module:attribute" or a function. A function whose first
            parameter is named `group` grades a whole Group and returns one value per trajectory; it
            runs after the others and sees their parts. Any other takes (task, trajectory). Both may be
            async. An empty table grades nothing: what the environment gave is all there is.

    Raises:
        ConfigError: unknown name or option, missing option, wrong weight, or two parts of one name.
    """
    table = reward if isinstance(reward, Mapping) else {reward: 1.0}
    grader = tuple(_term(key, spec) for key, spec in table.items())
    names = [term.name for term in grader]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"reward: two rewards are named {name!r}; parts are logged by name, so rename one")
    return grader


def pack(grader: Grader) -> bytes:
    """A grader as bytes for the grading processes, functions of a script or notebook included."""
    return cloudpickle.dumps(grader)


def _term(key: str | Callable[..., Any], spec: float | Mapping[str, Any]) -> Term:
    options = dict(spec) if isinstance(spec, Mapping) else {"weight": spec}
    weight = options.pop("weight", 1.0)
    name = key.rpartition(":")[2].rpartition(".")[2] if isinstance(key, str) else _name(key)
    where = f"reward.{key if isinstance(key, str) else name}"
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
        raise ConfigError(f"{where}: weight {weight!r}; expected a finite number")
    if "name" in options:
        raise ConfigError(f"{where}: a reward cannot have an option called 'name'")
    target = import_object(key) if isinstance(key, str) and ":" in key else key
    if not isinstance(target, str) and not callable(target):
        raise ConfigError(f"{where}: {target!r} is not a function")
    names = BUILTIN if isinstance(target, str) else {name: target}
    fn = bind({"name": target if isinstance(target, str) else name, **options}, names, "reward")
    return Term(name, fn, float(weight), _grades_group(fn, where))


def _name(fn: Callable[..., Any]) -> str:
    if isinstance(fn, functools.partial):
        return _name(fn.func)
    return getattr(fn, "__name__", type(fn).__name__)


def _grades_group(fn: Callable[..., Any], where: str) -> bool:
    """Whether a reward takes a group; checks that it can be called at all."""
    signature = inspect.signature(fn)
    of_group = next(iter(signature.parameters), "") == "group"
    try:
        signature.bind(*([None] if of_group else [None, None]))
    except TypeError as error:
        expected = "(group, *, options)" if of_group else "(task, trajectory, *, options)"
        raise ConfigError(f"{where}: {error}; a reward is called as {expected}") from None
    return of_group
