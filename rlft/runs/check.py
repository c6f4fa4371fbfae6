"""What a run's reward would pay for right, wrong and degenerate answers, before any training."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from rlft.actors.deadline import watched
from rlft.actors.reward import RewardWorker
from rlft.config import RunConfig
from rlft.data.sources import describe, load_tasks
from rlft.errors import ConfigError, visible
from rlft.report.screen import Screen
from rlft.rewards.compose import PackedGrader, compose, pack
from rlft.rewards.grader import Term
from rlft.rewards.probes import GOLD, SLOT, Probe, gold_text, probes, trajectory_of
from rlft.runs.stopping import note_doing
from rlft.types import Group, Task, Trajectory

AT_ONCE = 64  # tasks graded in one request
OTHERS = 32  # gold answers of other tasks that wrong ones are taken from
SHOWN, WIDTH = 5, 70  # cases of a kind that are listed, characters of each
FIRST_TASKS, FIRST_S = 4, 10.0  # what a run tries at its start, beside the actors that come up
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
        say(f"{len(loaded.bad_rows)} rows are no tasks:\n{_plain(describe(loaded.bad_rows))}")
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
    worker = RewardWorker(pack(terms), config.reward_pool.processes, config.reward_pool.timeout_s, config.reward_pool.env)
    try:
        with Screen(plan.console, doing=note_doing).phase("check", tell=False) as phase:
            paid = await pay(worker, cards, lambda done: phase.count(done, len(cards), "tasks"))
    finally:
        await worker.close()
    relative = any(term.rule.normalize == "group" or term.rule.kind == "group" for term in terms)
    findings = find(paid, relative)
    _show(paid, findings, say)
    say(_by_component(paid, [term.rule.name for term in terms]))
    wrong = verdict(findings, plan.strict)
    say(f"[bold]verdict: {'not sound' if wrong else 'sound'}[/bold]" + "".join(f"\n  - {escape(one)}" for one in wrong))
    return not wrong


def verdict(findings: Findings, strict: bool = False) -> list[str]:
    """What is wrong with a reward, in words; nothing where it is sound."""
    causes = [case.graded.error for case in findings.below if math.isnan(case.reward)]
    lost, less = len(causes), len(findings.below) - len(causes)
    told = {
        f"{lost} gold answers could not be graded{_first_line(causes)}": lost,
        f"{less} gold answers earn less than another task's: is a right answer said otherwise? (--template, --gold)": less,
        f"{len(findings.as_gold)} wrong answers earn as much as gold: {_kinds(findings.as_gold)}": len(findings.as_gold),
        f"{len(findings.lenient)} answers that only hold the gold earn as much: {_kinds(findings.lenient)}": strict * len(findings.lenient),
    }
    return [text for text, counts in told.items() if counts]


def _first_line(causes: Sequence[str]) -> str:
    """The first cause in one line, as the end of a sentence."""
    lines = [line for cause in causes for line in cause.strip().splitlines()[:1]]
    return f"; the first: {visible(lines[0])}" if lines else ""


async def first_look(grader: PackedGrader, tasks: Sequence[Task], timeout_s: float, seed: int, env: Sequence[str] = ()) -> str:
    """What a reward pays for the gold answers of a few tasks and for wrong ones, in one line; "" where that cannot be told
    without models or services, or where tasks have no right answers."""
    golds = {task.id: gold for task in tasks[: FIRST_TASKS * AT_ONCE] if (gold := gold_text(task)) is not None}
    right = [task for task in tasks[: FIRST_TASKS * AT_ONCE] if task.id in golds]
    if not right or grader.scorers:
        return ""
    rng = random.Random(seed)
    drawn = rng.sample(right, min(FIRST_TASKS, len(right)))
    cards = [(task, probes(task, golds[task.id], _others(task, right, golds, rng))) for task in drawn]
    worker = RewardWorker(grader, 1, timeout_s, env)

    async def look() -> None:
        if late := (await worker.busy()).told():
            raise TimeoutError(late)

    try:
        async with asyncio.timeout(FIRST_S):
            paid = await watched(pay(worker, cards), look)
    except TimeoutError as error:
        late = str(error) or f"{FIRST_S:g} s were not enough"
        return f"right and wrong answers to {len(cards)} tasks are not graded yet: {late}; try `rlft check`"
    finally:
        await worker.close()
    return first_words(paid, find(paid, any(rule.normalize == "group" or rule.kind == "group" for rule in grader.rules)))


def first_words(paid: Sequence[Paid], findings: Findings) -> str:
    """A first look in one line."""
    golds = [case.reward for case in paid if case.probe.kind == GOLD]
    others = [case.reward for case in paid if case.probe.kind != GOLD and not case.probe.lenient]
    earned = ", ".join(sorted({"not graded" if math.isnan(value) else f"{value:.3g}" for value in golds}))
    most = max((value for value in others if not math.isnan(value)), default=math.nan)
    said = f"reward of {len(golds)} right answers as the data has them: {earned}; of wrong ones at most {most:.3g}"
    if not verdict(findings):
        return f"{said}; sound so far (`rlft check` tries all)"
    return f"{said}; look with `rlft check`: {verdict(findings)[0]}"


def usable(terms: Sequence[Term], scorers: bool) -> tuple[list[Term], list[str]]:
    """Terms to check with, and the names of those left out. Raises ConfigError where none is left."""
    kept = [term for term in terms if scorers or term.rule.kind != "scorer"]
    if not kept:
        raise ConfigError("the run has no [reward] that can be checked" + ("; try --scorers" if terms else ""))
    return kept, [term.rule.name for term in terms if term not in kept]


async def pay(
    worker: RewardWorker, cards: Sequence[tuple[Task, Sequence[Probe]]], told: Callable[[int], None] = lambda done: None
) -> list[Paid]:
    """Grade every task's answers, as one group, through the grader of a run; `told` hears how many tasks are done."""
    paid: list[Paid] = []
    for start in range(0, len(cards), AT_ONCE):
        told(start)
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


def _show(paid: Sequence[Paid], findings: Findings, say: Callable[[Any], None]) -> None:
    table = Table(Column("answer", no_wrap=True), "tasks", "not graded", "reward", "most", "paid as gold")
    caught = {id(case) for case in (*findings.as_gold, *findings.lenient)}
    for kind in dict.fromkeys(case.probe.kind for case in paid):
        cases = [case for case in paid if case.probe.kind == kind]
        rewards = [case.reward for case in cases if not math.isnan(case.reward)]
        as_gold = "" if kind == GOLD else f"{sum(id(case) in caught for case in cases) / len(cases):.0%}"
        most = f"{max(rewards):.3g}" if rewards else "-"
        table.add_row(kind, str(len(cases)), str(len(cases) - len(rewards)), _mean(rewards), most, as_gold)
    say(table)
    _list("gold answers that do not earn the maximum", findings.below, say)
    _list("wrong answers that are paid as much as gold", findings.as_gold, say)
    _list("answers with the gold in them that are paid as much as gold (an error with --strict)", findings.lenient, say)
    _list("wrong answers that cannot be graded", findings.ungraded, say)


def _by_component(paid: Sequence[Paid], parts: Sequence[str]) -> Table:
    table = Table("component", "gold", "wrong", "most", "what it tells")
    for part in parts:
        told = [(case, case.graded.parts[part]) for case in paid if part in case.graded.parts]
        right = [value for case, value in told if case.probe.kind == GOLD]
        wrong = [value for case, value in told if case.probe.kind != GOLD and not case.probe.lenient]
        table.add_row(escape(part), _mean(right), _mean(wrong), f"{max(wrong):.3g}" if wrong else "-", tells(right, wrong))
    return table


def tells(right: Sequence[float], wrong: Sequence[float]) -> str:
    """Whether a component tells right answers from wrong ones."""
    if not right or not wrong:
        return "nothing: it was not graded" if not right else "no wrong answer was graded"
    if max(*right, *wrong) - min(*right, *wrong) <= SAME:
        return "nothing: always the same"
    if min(right) > max(wrong) + SAME:
        return "right from wrong"
    return "right from most wrong" if fmean(right) > fmean(wrong) + SAME else "something else than right"


def _kinds(cases: Sequence[Paid]) -> str:
    counted = Counter(case.probe.kind for case in cases)
    return ", ".join(f"{kind} ({number})" for kind, number in counted.most_common(3)) + (", ..." if len(counted) > 3 else "")


def _list(title: str, cases: Sequence[Paid], say: Callable[[Any], None]) -> None:
    if cases:
        say(f"[bold]{title}: {len(cases)}[/bold]")
    by_kind = sorted(cases, key=lambda case: case.probe.kind)
    for kind, some in groupby(by_kind, key=lambda case: case.probe.kind):
        listed = list(some)
        for case in listed[:SHOWN]:
            text = case.probe.text if len(case.probe.text) <= WIDTH else f"{case.probe.text[:WIDTH]}..."
            earned = case.graded.error if math.isnan(case.reward) else f"{case.reward:.4g}, {dict(case.graded.parts)}"
            say(_plain(f"  {kind}, task {case.task_id}: {text!r} -> {earned}"))
        if len(listed) > SHOWN:
            say(f"  {kind}: {len(listed) - SHOWN} more")


def _plain(text: str) -> str:
    """Text by others: no markup, and nothing that does something to a terminal."""
    return escape(visible(text))


def _mean(values: Iterable[float]) -> str:
    listed = list(values)
    return f"{fmean(listed):.3g}" if listed else "-"
