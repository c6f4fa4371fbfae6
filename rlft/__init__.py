"""rlft: reinforcement-learning fine-tuning for language models on Ray, vLLM and DeepSpeed.

`rlft.load` reads a run file; `rlft.train`, `rlft.sft`, `rlft.dpo`, `rlft.train_rm` and `rlft.evaluate` run it.
Importing rlft loads neither torch nor ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlft.types import Completion, Group, Message, Task, Trajectory, Turn

if TYPE_CHECKING:
    from rlft.config import load
    from rlft.report.callbacks import Callback
    from rlft.runs.preferences import dpo
    from rlft.runs.reward_model import train_rm
    from rlft.runs.run import evaluate, sft, train

__all__ = [
    "Callback",
    "Completion",
    "Group",
    "Message",
    "Task",
    "Trajectory",
    "Turn",
    "dpo",
    "evaluate",
    "load",
    "sft",
    "train",
    "train_rm",
]


def __getattr__(name: str) -> Any:
    if name == "load":  # takes a quarter of a second, and the command line's guard comes first
        return import_module("rlft.config").load
    if name == "Callback":
        return import_module("rlft.report.callbacks").Callback
    if name in ("evaluate", "sft", "train"):
        return getattr(import_module("rlft.runs.run"), name)
    if name == "dpo":
        return import_module("rlft.runs.preferences").dpo
    if name == "train_rm":
        return import_module("rlft.runs.reward_model").train_rm
    if name == "__version__":
        return import_module("importlib.metadata").version("rlft")
    raise AttributeError(f"module 'rlft' has no attribute {name!r}")
