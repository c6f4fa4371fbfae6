"""The ledger: how often each task was answered right over the whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rlft.data.disk import write_text
from rlft.errors import ConfigError
from rlft.types import GroupRef, TrajectoryInfo

UNSEEN = 0.5  # what counts as the pass rate of a task that was never attempted


@dataclass(frozen=True)
class Right:
    """When a trajectory counts as a right answer."""

    metric: str = ""  # reward part that is judged; "" = the whole reward
    threshold: float = 1.0
    per_turn: bool = False  # judge the last turn's reward, where every turn has one

    def judge(self, trajectory: TrajectoryInfo) -> bool | None:
        """None for a trajectory without a verdict, or with a number that stands in for one.

        Raises:
            ConfigError: no such part.
        """
        if trajectory.status == "failed" or trajectory.ungraded or (self.per_turn and not trajectory.turns):
            return None
        judged = trajectory.turns[-1] if self.per_turn else trajectory
        if self.metric and self.metric not in judged.parts:
            raise ConfigError(f"eval.metric {self.metric!r}: no such reward part; there are {sorted(judged.parts)}")
        whole = trajectory.turns[-1].reward if self.per_turn else trajectory.outcome
        return (judged.parts[self.metric] if self.metric else whole) >= self.threshold


@dataclass(frozen=True, slots=True)
class Record:
    """What the run knows of one task."""

    attempts: int = 0  # graded trajectories
    passes: int = 0  # right ones among them
    step: int = 0  # that attempted it last

    @property
    def rate(self) -> float:
        return self.passes / self.attempts if self.attempts else UNSEEN

    @property
    def expected(self) -> float:
        """(passes + 1) / (attempts + 2): never certain after a few attempts, UNSEEN without any."""
        return (self.passes + 1) / (self.attempts + 2)


NOTHING = Record()


class Ledger:
    """Records by task id. A group counts for the task that it was made for: the one that its first trajectory played."""

    def __init__(self, records: Mapping[str, Record] | None = None) -> None:
        self._records = dict(records or {})

    def __getitem__(self, task_id: str) -> Record:
        return self._records.get(task_id, NOTHING)

    def __len__(self) -> int:
        return len(self._records)

    def update(self, step: int, groups: Sequence[GroupRef], right: Right) -> None:
        """Count a step's trajectories, those of groups that were dropped included."""
        for group in groups:
            verdicts = [verdict for t in group.trajectories if (verdict := right.judge(t)) is not None]
            if verdicts:
                name, old = group.trajectories[0].task_id, self[group.trajectories[0].task_id]
                self._records[name] = Record(old.attempts + len(verdicts), old.passes + sum(verdicts), step)

    def rates(self, groups: Sequence[GroupRef]) -> dict[str, float]:
        """The pass rate of each group's task, by group id."""
        return {group.group_id: self[group.trajectories[0].task_id].rate for group in groups}

    def save(self, path: Path) -> None:
        """Replace `path` in one go."""
        write_text(path, json.dumps({name: asdict(record) for name, record in self._records.items()}))

    @classmethod
    def load(cls, path: Path) -> Ledger:
        return cls({name: Record(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()})
