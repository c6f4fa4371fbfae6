"""What a run tells to code of your own while it goes on, in plain data."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.errors import CallbackError, ConfigError
from rlft.names import nearest
from rlft.types import Sampled

NUM_SAMPLES = 32  # tasks of an evaluation whose first answer is told
Metrics = Mapping[str, float | int | str | None]


class Callback:
    """Override what you want to hear of; `rlft.train(..., callbacks=[Mine()])`.

    All of it is called in the driver, between steps: what takes long delays the run, and what raises stops it with
    CallbackError. Numbers that are not finite come as None.
    """

    def on_begin(self, config: Mapping[str, Any], folder: Path) -> None:
        """The run begins: its resolved run file as tables, and its folder."""

    def on_log(self, step: int, metrics: Metrics) -> None:
        """A step is done: its row of metrics.jsonl."""

    def on_evaluate(self, step: int, metrics: Metrics, samples: Sequence[Mapping[str, Any]]) -> None:
        """An evaluation is done: its row ("eval/mean", ...), and of some tasks `task`, `prompt`, `answer`, `said`, `reward`,
        `components` and `status`."""

    def on_save(self, step: int, checkpoint: Path) -> None:
        """A checkpoint is complete."""

    def on_alarm(self, step: int, name: str, text: str) -> None:
        """Something looks wrong (`[guards]`)."""

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended by itself: summary.json."""

    def close(self) -> None:
        """The last call of all, also of a run that failed. What it raises is a warning: it never replaces why a run stopped."""


EVENTS = [name for name in vars(Callback) if name.startswith("on_")]


def check(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks, if the run can call them. Raises ConfigError, also for a method that nothing would ever call."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            made = "make one" if isinstance(callback, type) else "derive its class from rlft.Callback"
            raise ConfigError(f"callbacks: expected instances of rlft.Callback, got {callback!r:.80}; {made}")
        for name in dir(callback):
            if name.startswith("on_") and name not in EVENTS:
                raise ConfigError(f"callbacks: {type(callback).__name__}.{name} would never be called{nearest(name, EVENTS)}")
    return list(callbacks)


def tell(callbacks: Sequence[Callback], event: str, *data: Any) -> None:
    """Call one method of every callback. Raises CallbackError with the name, and the line, of what raised."""
    for callback in callbacks:
        try:
            getattr(callback, event)(*data)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(callback).__name__}.{event} raised {type(error).__name__}: {error}"
            raise CallbackError(f"callback {what} ({where.filename}, line {where.lineno})") from error


def samples_of(sampled: Sequence[Sampled]) -> list[dict[str, Any]]:
    """The first answer to each of the first tasks of an evaluation, as `Callback.on_evaluate` has them."""
    return [_sample(one) for one in sampled[:NUM_SAMPLES] if one.trajectories]


def _sample(sampled: Sampled) -> dict[str, Any]:
    task, info, said = sampled.task, sampled.trajectories[0], (sampled.shown or sampled.said)[0]
    return {
        "task": task.id,
        "prompt": str(task.messages[-1].get("content") or "") if task.messages else "",
        "answer": None if task.answer is None else str(task.answer),
        "said": "\n\n".join(said),
        "reward": info.outcome if info.status != "failed" else None,
        "components": dict(info.parts),
        "status": info.status,
    }
