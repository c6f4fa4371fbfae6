"""What a run's reward would pay for right, wrong and degenerate answers, before any training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from rlft.actors.reward import RewardWorker
from rlft.config import RunConfig
from rlft.data.sources import describe, load_tasks
from rlft.errors import ConfigError
from rlft.rewards.compose import compose, pack
from rlft.rewards.grader import Term
from rlft.rewards.probes import GOLD, SLOT, Probe, gold_text, probes, trajectory_of
from rlft.types import Group, Task, Trajectory

AT_ONCE = 64  # tasks graded in one request
OTHERS = 32  # gold answers of other tasks that wrong ones are taken from
SHOWN, WIDTH = 5, 70  # cases of a kind that are listed, characters of each
SAME = 1e-9


@dataclass(frozen=True)
class Paid:
    """What one answer earned."""

    task_id: str
    probe: Probe
    graded: Trajectory

    @property
    def reward(self) -> float:
        """NaN where it was not graded: no comparison with it holds."""
        return math.nan if self.graded.status == "failed" else self.graded.reward


@dataclass(frozen=True)
class Findings:
    """What is wrong with a reward."""

    below: tuple[Paid, ...]  # gold answers that earn less than another task's, or were not graded
    as_gold: tuple[Paid, ...]  # wrong answers that earn as much as their task's gold
    lenient: tuple[Paid, ...]  # the same, of answers in which the gold stands
    ungraded: tuple[Paid, ...]  # wrong answers that could not be graded


@dataclass(frozen=True)
class Plan:
    """What is graded, and how."""

    samples: int | None = None  # tasks drawn at random; None: all
    template: str = SLOT
    gold: str = ""  # field of the task's meta that holds a right answer; "": the answer
    seed: int = 0
    strict: bool = False  # answers in which the gold stands count too
    scorers: bool = False  # grade with models and services as well
    console: Console = field(default_factory=Console)


async def check(config: RunConfig, plan: Plan) -> bool:
    """Print what the reward of a run pays, by kind of answer and by part. Whether it is sound.

    It is where every gold answer is graded and earns as much as any other, and no wrong one as much as its gold.

    Raises:
        ConfigError: no reward, none that can be checked, no right answers, or a template without a place for them.
        DataError: no tasks.
    """
    say = plan.console.print
    terms, skipped = usable(compose(config.reward), plan.scorers)
    for name in skipped:
        say(f"not checked: {escape(name)} keeps a model or a service; include it with --scorers")
    loaded = load_tasks(config.data)
    if loaded.bad_rows:
        say(f"{len(loaded.bad_rows)} rows are no tasks:\n{escape(describe(loaded.bad_rows))}")
    rng = random.Random(plan.seed)
    golds = {task.id: gold for task in loaded.tasks if (gold := gold_text(task, plan.gold)) is not None}
    right = [task for task in loaded.tasks if task.id in golds]
    if not right:
        field_name = f"field {plan.gold!r}" if plan.gold else "answer"
        raise ConfigError(f"no task has the {field_name}; --gold names the field of the data that holds a right answer")
    if len(right) < len(loaded.tasks):
        say(f"not checked: {len(loaded.tasks) - len(right)} tasks without a right answer")
    drawn = right if plan.samples is None or plan.samples >= len(right) else rng.sample(right, plan.samples)
    cards = [(task, probes(task, golds[task.id], _others(task, right, golds, rng), plan.template)) for task in drawn]
    worker = RewardWorker(pack(terms), config.reward_pool.processes, config.reward_pool.timeout_s)
    try:
        paid = await pay(worker, cards)
    finally:
        await worker.close()
    relative = any(term.rule.normalize == "group" or term.rule.kind == "group" for term in terms)
    findings = find(paid, relative)
    _show(paid, findings, [term.rule.name for term in terms], say)
    return not (findings.below or findings.as_gold or (plan.strict and findings.lenient))


def usable(terms: Sequence[Term], scorers: bool) -> tuple[list[Term], list[str]]:
    """Terms to check with, and the names of those left out. Raises ConfigError where none is left."""
    kept = [term for term in terms if scorers or term.rule.kind != "scorer"]
    if not kept:
        raise ConfigError("the run has no [reward] that can be checked" + ("; try --scorers" if terms else ""))
    return kept, [term.rule.name for term in terms if term not in kept]


async def pay(worker: RewardWorker, cards: Sequence[tuple[Task, Sequence[Probe]]]) -> list[Paid]:
    """Grade every task's answers, as one group, through the grader of a run."""
    paid: list[Paid] = []
    for start in range(0, len(cards), AT_ONCE):
        part = cards[start : start + AT_ONCE]
        groups = [Group(task.id, tuple(trajectory_of(task, probe.text, i) for i, probe in enumerate(asked))) for task, asked in part]
        for (task, asked), group in zip(part, await worker.grade(groups), strict=True):
            paid += [Paid(task.id, probe, graded) for probe, graded in zip(asked, group.trajectories, strict=True)]
    return paid


def find(paid: Sequence[Paid], relative: bool = False) -> Findings:
    """What is wrong.

    Args:
        paid: in the order of tasks.
        relative: rewards come from comparison within a group, so gold answers of different tasks do not compare.
    """
    golds = {case.task_id: case for case in paid if case.probe.kind == GOLD}
    best = max((case.reward for case in golds.values() if not math.isnan(case.reward)), default=math.nan)
    below = [g for g in golds.values() if math.isnan(g.reward) or (not relative and g.reward < best - SAME)]
    wrong = [case for case in paid if case.probe.kind != GOLD]
    caught = [case for case in wrong if case.reward >= golds[case.task_id].reward - SAME]
    return Findings(
        tuple(below),
        tuple(case for case in caught if not case.probe.lenient),
        tuple(case for case in caught if case.probe.lenient),
        tuple(case for case in wrong if math.isnan(case.reward)),
    )


def _others(task: Task, tasks: Sequence[Task], golds: dict[str, str], rng: random.Random) -> list[str]:
    drawn = rng.sample(tasks, min(OTHERS, len(tasks)))
    return [golds[other.id] for other in drawn if other is not task]


def _show(paid: Sequence[Paid], findings: Findings, parts: Sequence[str], say: Callable[[Any], None]) -> None:
    table = Table(Column("answer", no_wrap=True), "tasks", "not graded", "reward", "most", "paid as gold", *map(escape, parts))
    caught = {id(case) for case in (*findings.as_gold, *findings.lenient)}
    for kind in dict.fromkeys(case.probe.kind for case in paid):
        cases = [case for case in paid if case.probe.kind == kind]
        graded = [case for case in cases if not math.isnan(case.reward)]
        rewards = [case.reward for case in graded]
        as_gold = "" if kind == GOLD else f"{sum(id(case) in caught for case in cases) / len(cases):.0%}"
        means = [_mean(case.graded.parts[part] for case in graded if part in case.graded.parts) for part in parts]
        most = f"{max(rewards):.3g}" if rewards else "-"
        table.add_row(kind, str(len(cases)), str(len(cases) - len(graded)), _mean(rewards), most, as_gold, *means)
    say(table)
    _list("gold answers that do not earn the maximum", findings.below, say)
    _list("wrong answers that are paid as much as gold", findings.as_gold, say)
    _list("answers with the gold in them that are paid as much as gold (an error with --strict)", findings.lenient, say)
    _list("wrong answers that cannot be graded", findings.ungraded, say)


def _list(title: str, cases: Sequence[Paid], say: Callable[[Any], None]) -> None:
    if cases:
        say(f"[bold]{title}: {len(cases)}[/bold]")
    by_kind = sorted(cases, key=lambda case: case.probe.kind)
    for kind, some in groupby(by_kind, key=lambda case: case.probe.kind):
        listed = list(some)
        for case in listed[:SHOWN]:
            text = case.probe.text if len(case.probe.text) <= WIDTH else f"{case.probe.text[:WIDTH]}..."
            earned = case.graded.error if math.isnan(case.reward) else f"{case.reward:.4g}, {dict(case.graded.parts)}"
            say(escape(f"  {kind}, task {case.task_id}: {text!r} -> {earned}"))
        if len(listed) > SHOWN:
            say(f"  {kind}: {len(listed) - SHOWN} more")


def _mean(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{fmean(listed):.3g}" if listed else "-"
