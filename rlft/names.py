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

from rlft.elsewhere import ours
from rlft.errors import ConfigError, explain


def bind(table: Mapping[str, Any], builtin: Mapping[str, Callable[..., Any] | str], where: str) -> Callable[..., Any]:
    """The callable that a table names, with the table's other keys bound as keywords.

    `name` is a short built-in name or "module:attribute", so a user's own reward, env or
    algorithm needs no registration. `builtin` may map to "module:attribute" too (loaded when used).

    Raises:
        ConfigError: unknown name, failed import, or a key that the callable does not take.
    """
    kwargs, target = dict(table), check_name(table, builtin, where)
    name = kwargs.pop("name")
    fn = import_object(target) if isinstance(target, str) else target
    valid = option_names(fn)
    for key in kwargs:
        if valid is not None and key not in valid:
            raise ConfigError(f"{where}.{name}: unknown option {key!r}{ours(key) or nearest(key, valid)}")
    return functools.partial(fn, **kwargs) if kwargs else fn


def check_name(table: Mapping[str, Any], builtin: Mapping[str, Callable[..., Any] | str], where: str) -> Callable[..., Any] | str:
    """What `name` in a table stands for, imported by nobody yet. Raises ConfigError for none, and for one that is not known."""
    name = table.get("name")
    if name is None:
        raise ConfigError(f"{where}.name is missing{nearest('', builtin)}, or 'module:attribute'")
    target = builtin.get(str(name), name if isinstance(name, str) and ":" in name else None)
    if target is None and (meant := _in_module(str(name))):
        raise ConfigError(f"{where}: unknown name {name!r}; a function of a module is written with a colon: {meant!r}")
    if target is None:
        raise ConfigError(f"{where}: unknown name {name!r}{nearest(str(name), builtin)}, or use 'module:attribute'")
    return target


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
    """Import "module:attribute"; the current folder counts as importable. Raises ConfigError, which says where the code failed."""
    module, _, attribute = path.partition(":")
    if not module or not attribute:
        raise ConfigError(f"cannot import {path!r}: expected 'module:attribute'")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # it is there, and lacks one that it imports itself
            raise ConfigError(f"cannot import {path!r}: {explain(error)}") from error
        raise ConfigError(f"cannot import {path!r}: {error}{_where_looked(module, attribute)}") from error
    except (Exception, SystemExit) as error:  # a module is a program by others: it may raise anything
        raise ConfigError(f"cannot import {path!r}: {explain(error)}") from error
    try:
        return functools.reduce(getattr, attribute.split("."), found)
    except AttributeError as error:
        own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == found.__name__]
        raise ConfigError(f"cannot import {path!r}: {error}{nearest(attribute, own) if own else ''}") from error


def _where_looked(module: str, attribute: str) -> str:
    if module.endswith(".py") and Path(module).is_file():
        named = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        return f"; a module is written without .py: {named + ':' + attribute!r}"
    here = [file.stem for file in Path.cwd().glob("*.py")]
    near = nearest(module, here)
    looked = f" (looked in {Path.cwd()} and on Python's path)"
    return f"{looked}{near}" if "did you mean" in near else f"{looked}; start rlft in the folder of {module.partition('.')[0]}.py"


def _in_module(name: str) -> str:
    """A name such as "my.module.function" as "my.module:function", where that module lies in the current folder; "" where not."""
    plain = name.removesuffix(".py")
    whole, (inner, _, attribute) = (plain, "FUNCTION"), plain.rpartition(".")
    return next((":".join(pair) for pair in ((inner, attribute), whole) if pair[0] and _file_of(pair[0]).is_file()), "")


def _file_of(module: str) -> Path:
    return Path(f"{module.replace('.', '/')}.py")


def nearest(key: str, valid: Iterable[str]) -> str:
    """What to write instead of `key`, as the end of an error message: up to three names, the likeliest slip first."""
    if near := close_to(key, valid):
        *others, last = map(repr, near)
        return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
    return f"; valid: {', '.join(sorted(valid))}"


def close_to(key: str, valid: Iterable[str]) -> list[str]:
    """Up to three names that are spelled much like `key`, by the fewest slips: a letter too many, too few, wrong, or two swapped."""
    from rapidfuzz.distance import OSA, JaroWinkler

    names, folded = list(valid), key.casefold().replace("-", "_")
    if same := [name for name in names if name.casefold() == folded]:
        return same
    alike = difflib.get_close_matches(key, names, n=3)
    slips = {name: OSA.distance(key, name) for name in alike}
    ordered = sorted(alike, key=lambda name: (slips[name], -JaroWinkler.similarity(key, name)))
    return [name for name in ordered if slips[ordered[0]] > 2 or slips[name] <= slips[ordered[0]] + 1]
