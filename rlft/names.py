"""Names in the run file: a short built-in one, or `module:attribute`, with the table's other keys bound as options."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from rlft.errors import ConfigError


def bind(table: Mapping[str, Any], builtin: Mapping[str, Callable[..., Any] | str], where: str) -> Callable[..., Any]:
    """The callable that a table names, with the table's other keys bound as keywords.

    `name` is a short built-in name or "module:attribute", so a user's own reward, env or
    algorithm needs no registration. `builtin` may map to "module:attribute" too (loaded when used).

    Raises:
        ConfigError: unknown name, failed import, or a key that the callable does not take.
    """
    kwargs = dict(table)
    name = kwargs.pop("name", None)
    target = builtin.get(str(name), name if isinstance(name, str) and ":" in name else None)
    if name is None:
        raise ConfigError(f"{where}.name is missing{nearest('', builtin)}, or 'module:attribute'")
    if target is None:
        raise ConfigError(f"{where}: unknown name {name!r}{nearest(str(name), builtin)}, or use 'module:attribute'")
    fn = import_object(target) if isinstance(target, str) else target
    valid = option_names(fn)
    for key in kwargs:
        if valid is not None and key not in valid:
            raise ConfigError(f"{where}.{name}: unknown option {key!r}{nearest(key, valid)}")
    return functools.partial(fn, **kwargs) if kwargs else fn


def option_names(fn: Callable[..., Any]) -> set[str] | None:
    """What a callable takes by name: its parameters, and the keys of a TypedDict in `**options: Unpack[...]`; None: anything."""
    parameters = inspect.signature(fn).parameters
    names = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD}
    for p in parameters.values():
        if p.kind is p.VAR_KEYWORD:
            if "Unpack" not in str(p.annotation):
                return None
            owner = vars(sys.modules[inspect.unwrap(fn).__module__])
            hint = get_type_hints(SimpleNamespace(__annotations__={"options": p.annotation}), globalns=owner)["options"]
            names |= set(get_args(hint)[0].__annotations__)
    return names


def import_object(path: str) -> Any:
    """Import "module:attribute"; the current folder counts as importable. Raises ConfigError."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ConfigError(f"cannot import {path!r}: expected 'module:attribute'")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot import {path!r}: {error}") from error


def nearest(key: str, valid: Iterable[str]) -> str:
    """What to write instead of `key`, as the end of an error message."""
    near = difflib.get_close_matches(key, list(valid), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(sorted(valid))}"
