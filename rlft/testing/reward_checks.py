"""The contract of a reward, as a check to call from your own test."""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from rlft.actors.reward import RewardWorker
from rlft.errors import RewardError
from rlft.rewards.compose import compose, pack
from rlft.rewards.grader import Rule, Term, verdicts
from rlft.rewards.probes import Probe, gold_text, probes, trajectory_of
from rlft.types import Group, Task, Trajectory

SAME = 1e-9
NOT_ITS_FAULT = {"timeout", "crashed", "oom", "ungradable"}  # what a reward with `on_error` may run into
ALPHABET = "0123456789 .,-+=/\\^_{}()[]<>$%\"'\n\t\r\x00ABCxyz\u00e9\u2212\u4e8c\U0001f600\ud800\u202e"


def check_reward(
    fn: Callable[..., Any],
    tasks: Sequence[Task],
    *,
    right: Callable[[Task], str | None] | None = gold_text,
    timeout_s: float = 5.0,
    **options: Any,
) -> None:
    """Assert the laws that every reward function keeps, on real grading processes:

    gold (a right answer earns more than wrong and degenerate ones), verdict (finite numbers, with text as feedback, one
    per trajectory), survives (any text, groups of one, an answer without text, each within the deadline), pure (task and
    trajectories stay as they were), repeat (the same call gives the same), independent (of what was graded before),
    order (a group reward gives every trajectory the same in whatever order they stand), pickle (it reaches the
    grading processes), canary (its own canaries hold).

    Args:
        fn: (task, trajectory, *, options) or (group, *, options); may be async.
        tasks: at least one; two or more give wrong answers from each other.
        right: what a right answer to a task says. None: the reward does not measure correctness, which skips "gold".
        timeout_s: deadline of one call.
        options: of the reward.

    Raises:
        AssertionError: the message begins with the law that is broken.
        ValueError: no tasks, or none with a right answer.
        ConfigError: `fn` cannot be called as a reward.
    """
    if not tasks:
        raise ValueError("check_reward: give at least one task")
    cards = _cards(tasks, right)
    (term,) = compose({fn: {"timeout_s": timeout_s, **options}})
    if term.rule.kind == "scorer":
        raise ValueError("check_reward: checks functions; a Scorer is checked by its own tests")
    packed = _packed(term)
    groups = [Group(task.id, tuple(trajectory_of(task, probe.text, i) for i, probe in enumerate(asked))) for task, asked in cards]
    graded = _graded(packed, [*groups, *_hard_groups(tasks[0], term.rule)], timeout_s)
    for group in graded:
        for trajectory in group.trajectories:
            _check_graded(term.rule, trajectory)
    first = graded[: len(groups)]
    for (task, asked), group in zip(cards, first, strict=True):
        if right is not None:
            _check_gold(task, asked, group, term.rule.name)
    for group in groups:
        _check_in_process(term, group)
    if term.rule.kind == "each":
        _check_independent(packed, groups, first, timeout_s, term.rule.name)


def _cards(tasks: Sequence[Task], right: Callable[[Task], str | None] | None) -> list[tuple[Task, list[Probe]]]:
    golds = {task.id: gold for task in tasks if (gold := (right or gold_text)(task)) is not None}
    if right is not None and not golds:
        raise ValueError("check_reward: no task has an answer; set right= to a function of a task, or to None")
    cards = []
    for task in tasks:
        others = [gold for task_id, gold in golds.items() if task_id != task.id]
        asked = probes(task, golds.get(task.id, "42"), others)
        if task.id in golds or right is None:
            cards.append((task, asked))
    return cards


def _packed(term: Term) -> Any:
    try:
        return pack([term])
    except Exception as error:
        raise AssertionError(f"pickle: reward {term.rule.name!r} cannot be sent to a grading process: {error}") from error


def _graded(packed: Any, groups: Sequence[Group], timeout_s: float) -> list[Group]:
    """On a thread of its own, so that it works where an event loop runs already (a notebook)."""

    async def grade() -> list[Group]:
        worker = RewardWorker(packed, 1, timeout_s)
        try:
            await worker.start()
            return await worker.grade(groups)
        finally:
            await worker.close()

    with ThreadPoolExecutor(1) as thread:
        try:
            return thread.submit(asyncio.run, grade()).result()
        except RewardError as error:
            law = "pickle" if "cannot be loaded" in str(error) else "canary"
            raise AssertionError(f"{law}: {error}") from error


def _check_graded(rule: Rule, trajectory: Trajectory) -> None:
    cause = trajectory.ungraded.get(rule.name)
    text = f"{trajectory.error}; the answer was {(trajectory.text or '')[:80]!r}"
    assert cause != "invalid", f"verdict: {text}"
    assert cause is None or (rule.on_error is not None and cause in NOT_ITS_FAULT), f"survives: {text}"


def _check_gold(task: Task, asked: Sequence[Probe], group: Group, name: str) -> None:
    gold, *wrong = group.trajectories
    for probe, trajectory in zip(asked[1:], wrong, strict=True):
        assert probe.lenient or trajectory.reward < gold.reward - SAME, (
            f"gold: reward {name!r} pays {trajectory.reward:g} for {probe.kind!r} ({probe.text[:60]!r}) and {gold.reward:g} "
            f"for the right answer {asked[0].text[:60]!r} of task {task.id!r}"
        )


def _hard_groups(task: Task, rule: Rule) -> list[Group]:
    """Fuzzed texts, a cut answer, a message that only calls tools, and no turn at all."""
    texts = fuzz_texts()
    size = 1 if rule.kind == "each" else len(texts)
    cut = replace(trajectory_of(task, "so the answer"), status="truncated")
    (turn,) = cut.turns
    tool = replace(cut, status="completed", turns=(replace(turn, action={"role": "assistant", "content": None, "tool_calls": []}),))
    odd = [[cut], [tool], [replace(cut, turns=())]]
    fuzzed = [[trajectory_of(task, text) for text in texts[i : i + size]] for i in range(0, len(texts), size)]
    return [Group(f"hard/{i}", tuple(trajectories)) for i, trajectories in enumerate([*fuzzed, *odd])]


def _check_in_process(term: Term, group: Group) -> None:
    """The laws that need a look at the arguments; what hangs or dies was found before."""
    subjects: list[Any] = list(group.trajectories) if term.rule.kind == "each" else [group]
    name = term.rule.name
    for subject in subjects:
        before = copy.deepcopy(subject)
        values = _call(term, subject)
        assert subject == before, f"pure: reward {name!r} changed its task or trajectory; work on a copy"
        assert values == _call(term, subject), f"repeat: reward {name!r} gives something else the second time: {values}"
    if term.rule.kind == "group":
        values = _call(term, group)
        turned = _call(term, replace(group, trajectories=group.trajectories[::-1]))
        assert _close(values, turned[::-1]), f"order: reward {name!r} depends on the order of the group's trajectories"


def _check_independent(packed: Any, groups: Sequence[Group], first: Sequence[Group], timeout_s: float, name: str) -> None:
    turned = [replace(group, trajectories=group.trajectories[::-1]) for group in reversed(groups)]
    again = [replace(group, trajectories=group.trajectories[::-1]) for group in reversed(_graded(packed, turned, timeout_s))]
    for one, other in zip(first, again, strict=True):
        for a, b in zip(one.trajectories, other.trajectories, strict=True):
            assert abs(a.reward - b.reward) <= SAME, (
                f"independent: reward {name!r} gives {a.text[:60]!r} {a.reward:g} or {b.reward:g}, depending on what it graded before"
            )


def _call(term: Term, subject: Any) -> list[Any]:
    group = isinstance(subject, Group)

    async def awaited() -> Any:
        returned = term.fn(subject) if group else term.fn(subject.task, subject)
        return await returned if inspect.isawaitable(returned) else returned

    with ThreadPoolExecutor(1) as thread:
        returned = thread.submit(asyncio.run, awaited()).result()
    return verdicts(term.rule, returned, len(subject.trajectories) if group else 1)


def _close(one: Sequence[Any], other: Sequence[Any]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all((a is None) == (b is None) and (a is None or abs(a[0] - b[0]) <= SAME) for a, b in pairs)


def fuzz_texts(number: int = 60, seed: int = 0) -> list[str]:
    """Texts that break careless rewards, then random ones; the same every time."""
    rng = random.Random(seed)
    nasty = [
        *("{}", "[", "}{", "null", "NaN", "-inf", "1e999", "1/0", "1,2,3", "\x00", "\ud800", "\u0662", "\u00b2", "\n", "%s%n", "\\1"),
        *(text * 5000 for text in ("(", "{", "[", "9", "1 ", "$")),
        *(text * 500 for text in ("\\frac{", "\\boxed{", "<answer>", "</answer>", '{"a": ', "[1, ")),
        *("a" * 100_000, "(a+)+$" + "a" * 40, "9**9**9**9", "9^{9^{9^{9}}}", "\u202e\u200b\ufeff", "</answer><answer>", "```python\n"),
        *("<think></think></think>", "DROP TABLE t; --", "__import__('os')._exit(0)"),
    ]
    return [*nasty, *("".join(rng.choices(ALPHABET, k=rng.randrange(1, 200))) for _ in range(number))]
