"""Contract checks and fakes for tests of your own; loaded when used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlft.testing.checks import check_algorithm
    from rlft.testing.reward_checks import check_reward

__all__ = ["check_algorithm", "check_reward"]


def __getattr__(name: str) -> Any:
    if name == "check_reward":
        return import_module("rlft.testing.reward_checks").check_reward
    if name == "check_algorithm":
        return import_module("rlft.testing.checks").check_algorithm
    raise AttributeError(f"module 'rlft.testing' has no attribute {name!r}")
