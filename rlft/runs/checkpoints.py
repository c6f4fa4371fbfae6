"""Checkpoints of a run: weights with how far the run was beside them, complete or not taken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlft.data.disk import write_text
from rlft.data.ledger import Ledger
from rlft.errors import ConfigError, SaveError
from rlft.learner.policy import partial_of

if TYPE_CHECKING:
    from rlft.actors.learner import Learner

PROGRESS, LEDGER, STATE = "progress.json", "ledger.json", "state"


@dataclass(frozen=True)
class Saved:
    """How far a run was, as `progress.json` of a checkpoint tells it."""

    step: int = 0  # of the run
    stage: int = 0
    stage_step: int = 0
    position: int = 0  # in the stage's stream of tasks
    order: list[int] | None = None  # of the stream's epoch, where pass rates decide it
    num_groups: int = 0  # numbered so far
    temperature: float | None = None  # None: the stage's own
    controls: dict[str, float] = field(default_factory=dict)
    met: int = 0  # records in a row that met the stage's stopping rule
    stopped: bool = False  # by that rule
    weights: str = ""  # the checkpoint whose weights the stage began with; "": the run's model
    rows: int = 0  # of metrics.jsonl

    @property
    def name(self) -> str:
        """Of the checkpoint's folder."""
        return f"step-{self.step:06d}"


async def save(learner: Learner, checkpoints: Path, saved: Saved, ledger: Ledger, state: bool) -> None:
    """Write a checkpoint; `progress.json` comes last, and a folder without it is not one. Optimizer state of older ones goes."""
    target = checkpoints / saved.name
    with writing(target):
        await learner.save(target, state)
        ledger.save(target / LEDGER)
        write_text(target / PROGRESS, json.dumps(asdict(saved)))
    for folder in checkpoints.iterdir():
        if folder != target:
            shutil.rmtree(folder / STATE, ignore_errors=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Around the writing of a checkpoint: where it fails nothing of it stays, and those before it are as they were.

    Raises:
        SaveError: what failed, and where the run can go on from.
    """
    try:
        yield
    except Exception as error:
        for left in (target, partial_of(target)):
            shutil.rmtree(left, ignore_errors=True)  # what cannot be removed either is not complete, and goes at a resume
        complete = sorted(folder.parent.name for folder in target.parent.glob(f"step-*/{PROGRESS}"))
        before = f"the last complete checkpoint is {complete[-1]}, from which --resume goes on" if complete else "there is none before it"
        why = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise SaveError(f"checkpoint {target} could not be written: {why[0]}; {before}; make it possible to write there") from error


def last(checkpoints: Path) -> Saved | None:
    """What the newest complete checkpoint tells; what is not complete is removed.

    Raises:
        ConfigError: a checkpoint of another kind of run.
    """
    complete = []
    for folder in [*checkpoints.glob("step-*"), *checkpoints.glob(".step-*")]:
        if (folder / PROGRESS).is_file():
            complete.append(_read(folder / PROGRESS))
        else:
            shutil.rmtree(folder)
    return max(complete, key=lambda saved: saved.step, default=None)


def _read(path: Path) -> Saved:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if missing := set(Saved.__dataclass_fields__) ^ set(values):
        raise ConfigError(f"{path}: not of `rlft train`: missing or unknown {', '.join(sorted(missing))}; only such a run can be resumed")
    return Saved(**values)
