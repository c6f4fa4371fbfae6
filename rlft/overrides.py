"""What `--set` changes in a run file: "dotted.key=value", with the value as people type it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from rlft.errors import ConfigError


def apply(table: dict[str, Any], override: str, model: type[BaseModel]) -> None:
    """Set one "dotted.key=value" in a table. `model` describes the table: it tells which keys hold lists. Raises ConfigError."""
    key, sep, text = override.partition("=")
    if not sep:
        raise ConfigError(f"--set {override!r}: expected key=value, such as rollout.group_size=16")
    *parents, leaf = key.strip().split(".")
    value, node = _read_value(text, _is_list(parents, leaf, model)), table
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent!r} is a value, not a table")
    node[leaf] = value


def _read_value(text: str, is_list: bool) -> Any:
    """A value on the command line: TOML, or else text. A list may leave out its brackets: 1,8 or q_proj,v_proj."""
    for written in (text, f"[{text}]") if is_list else (text,):
        try:
            value = tomllib.loads(f"value = {written}")["value"]
        except tomllib.TOMLDecodeError:
            continue
        return value if isinstance(value, list) or not is_list else [value]
    if text in ("True", "False"):  # as Python writes it
        return text == "True"
    return [part.strip() for part in text.split(",")] if is_list else text


def _is_list(parents: Sequence[str], leaf: str, model: type[BaseModel]) -> bool:
    """Whether a key of the run file holds a list of plain values."""
    section: Any = model
    for parent in parents:
        field = getattr(section, "model_fields", {}).get(parent)
        section = field and section_in(field.annotation)
    field = getattr(section, "model_fields", {}).get(leaf)
    return field is not None and get_origin(field.annotation) is list and leaf != "stages"


def section_in(annotation: Any) -> Any:
    """The section in an annotation such as `list[Section]` or `Section | None`."""
    return next((part for part in get_args(annotation) if part is not type(None)), annotation)
