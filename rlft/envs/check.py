"""Verdicts that an environment itself gives, where its course depends on them."""

from __future__ import annotations

from collections.abc import Callable

from rlft.errors import ConfigError
from rlft.names import import_object
from rlft.types import Message, Task

Check = Callable[[Task, str], bool]


def exact(task: Task, text: str) -> bool:
    """Whether the text is the task's answer, white space around both aside."""
    return text.strip() == str(task.answer).strip()


def find_check(check: str | Check) -> Check:
    """The check of that name: "exact", or "module:function" of (task, text); a function stands for itself.

    Raises:
        ConfigError: no such check.
    """
    if callable(check):
        return check
    if check == "exact":
        return exact
    if ":" not in check:
        raise ConfigError(f"env.check: expected 'exact' or 'module:function', got {check!r}")
    return import_object(check)


def said(action: Message) -> str:
    """The text of a message; "" for one that only calls tools."""
    return action.get("content") or ""
