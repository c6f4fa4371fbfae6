"""Tasks that a reward cannot grade, whatever the policy says, found before the run by the rewards' own readers."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlft.actors.reward import RewardWorker
from rlft.data.sources import BadRow, describe
from rlft.errors import DataError
from rlft.report.progress import shown
from rlft.rewards.compose import pack
from rlft.rewards.grader import Rule, Term, spoken
from rlft.types import Group, Task

OURS, BROUGHT = "rlft.rewards.", "rlft.rewards.adapters."
AT_ONCE = 512  # tasks in one request
EMPTY = ""  # nothing is asked of an answer: a broken task is told before one is read


class Gradable(NamedTuple):
    """The tasks that the rewards can grade, and a row for each of the others."""

    tasks: list[Task]
    bad_rows: list[BadRow]


def gradable(
    sources: Mapping[str, Sequence[Task]], terms: Sequence[Term], max_failed: float, timeout_s: float
) -> dict[str, Gradable]:
    """Set aside tasks that the rewards cannot grade, whatever the policy says.

    An empty answer to every task goes through the grading processes. Rewards that ship with rlft read the task before the answer, and say
    what is wrong with it (`TaskError`); a user's own functions are not asked, for what they cost is not known.

    Args:
        sources: tasks by the table of the run file that they come from.
        max_failed: share of a source's tasks that may be left out.
        timeout_s: of one call.

    Raises:
        DataError: more than that cannot be graded.
    """
    asked, every = [_plain(term) for term in terms if _reads_tasks(term)], [task for tasks in sources.values() for task in tasks]
    told = iter(asyncio.run(_look(every, asked, timeout_s)) if asked and every else [""] * len(every))
    found = {}
    for where, tasks in sources.items():
        reasons = [(number, task, next(told)) for number, task in enumerate(tasks, 1)]
        bad = [BadRow(f"task {task.id}", number, "answer", why) for number, task, why in reasons if why]
        if len(bad) > max_failed * len(tasks):
            allowed = f"at most the share reward_pool.max_failed = {max_failed:g} may be"
            raise DataError(f"[{where}] {len(bad)} of {len(tasks)} tasks cannot be graded; {allowed}:\n{describe(bad)}")
        found[where] = Gradable([task for _, task, why in reasons if not why], bad)
    return found


def _reads_tasks(term: Term) -> bool:
    fn = term.fn.func if isinstance(term.fn, functools.partial) else term.fn
    module = getattr(fn, "__module__", "")
    return term.rule.kind == "each" and module.startswith(OURS) and not module.startswith(BROUGHT)


def _plain(term: Term) -> Term:
    """Asked whatever another one says: without gates, and without numbers that stand in."""
    return Term(Rule(term.rule.name, timeout_s=term.rule.timeout_s), term.fn)


async def _look(tasks: Sequence[Task], terms: Sequence[Term], timeout_s: float) -> list[str]:
    """Why each task cannot be graded, "" where it can."""
    worker = RewardWorker(pack(terms), os.cpu_count() or 1, timeout_s)
    found: list[str] = []
    try:
        for number in shown(range(len(tasks)), "right answers read", len(tasks)):
            if number == len(found):
                part = tasks[number : number + AT_ONCE]
                (graded,) = await worker.grade([Group("golds", tuple(spoken(task, EMPTY) for task in part))])
                found += [one.error if "task" in one.ungraded.values() else "" for one in graded.trajectories]
    finally:
        await worker.close()
    return found
