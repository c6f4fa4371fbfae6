"""A judging task that a tiny model can learn: which of two copies of a number is the faithful one.

"472=A472B975?" -> "A". The demonstrations answer "A" too often, the more so the closer the two
copies are, as language models judge by position where the answers differ little
(arXiv:2406.07791). Each task holds the same pair in the other order as its variant, so that one
group, with one baseline, covers both orders (EIS-GRPO).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlft.errors import RewardError
from rlft.types import Group, Task

PLACES = 3
NEAR = 2  # wrong digits of the closer copies; in the others all are
NUM_DEMONSTRATED = 500  # numbers shown by the demonstrations; reinforcement never sees them
NUM_HELD_OUT = 100


def splits(seed: int) -> dict[str, list[str]]:
    """Disjoint numbers: those demonstrated, those for reinforcement, those held out."""
    numbers = [f"{n:0{PLACES}d}" for n in range(10**PLACES)]
    random.Random(f"numbers {seed}").shuffle(numbers)
    held_out = numbers[NUM_DEMONSTRATED : NUM_DEMONSTRATED + NUM_HELD_OUT]
    return {"demonstrated": numbers[:NUM_DEMONSTRATED], "held_out": held_out, "train": numbers[NUM_DEMONSTRATED + NUM_HELD_OUT :]}


def miscopied(number: str, slips: int, rng: random.Random) -> str:
    """The number with `slips` of its digits replaced by others."""
    places = set(rng.sample(range(len(number)), slips))
    return "".join(rng.choice([d for d in "0123456789" if d != digit]) if i in places else digit for i, digit in enumerate(number))


def pair(number: str, rng: random.Random) -> tuple[str, str]:
    """The faithful copy and one with two slips, or (as often) with every digit wrong; in random order."""
    copies = [number, miscopied(number, rng.choice([NEAR, PLACES]), rng)]
    rng.shuffle(copies)
    return copies[0], copies[1]


def distinct_pairs(number: str, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Pairs with different wrong copies."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    while len(found) < count:
        copies = pair(number, rng)
        found.setdefault(frozenset(copies), copies)
    return list(found.values())


def question(number: str, first: str, second: str) -> tuple[str, str]:
    """Prompt and answer: which copy is faithful, the one after A or the one after B?"""
    return f"{number}=A{first}B{second}?", "A" if first == number else "B"


def order(task_id: str, number: str, first: str, second: str) -> Task:
    """The question in one order. Its meta["responses"] says what the letters of a verdict name."""
    prompt, answer = question(number, first, second)
    return Task(task_id, ({"role": "user", "content": prompt},), answer, {"responses": {"A": first, "B": second}})


def tasks(split: str, seed: int = 0, pairs: int = 4, together: bool = True) -> list[Task]:
    """So many different pairs for every number of a split: "train", "held_out" or "demonstrated".

    Args:
        together: each task has the other order as its variant; else both orders are tasks of their own.
    """
    rng = random.Random(f"pairs {split} {seed}")
    made: list[Task] = []
    for number in splits(seed)[split]:
        for first, second in distinct_pairs(number, pairs, rng):
            name = f"{split}/{first}-{second}/{number}"
            one, other = order(f"{name}/1", number, first, second), order(f"{name}/2", number, second, first)
            made += [replace(one, variants=(other,))] if together else [one, other]
    return made


def demonstrations(seed: int = 0, count: int = 38_400, near_bias: float = 0.75, far_bias: float = 0.2) -> Iterator[dict[str, str]]:
    """Verdicts of a judge who looks at the position: {"prompt": ..., "answer": ...}.

    Args:
        near_bias: share of the pairs with two slips in which the verdict is "A" whatever the pair is.
        far_bias: the same where all digits differ.
    """
    rng = random.Random(f"verdicts {seed}")
    numbers = splits(seed)["demonstrated"]
    for _ in range(count):
        first, second = pair(number := rng.choice(numbers), rng)
        prompt, answer = question(number, first, second)
        near = sum(a != b for a, b in zip(first, second, strict=True)) == NEAR
        yield {"prompt": prompt, "answer": "A" if rng.random() < (near_bias if near else far_bias) else answer}


def agreement(one: Sequence[str | None], other: Sequence[str | None]) -> float:
    """Chance that a verdict drawn from each order names the same response, in 0..1.

    Args:
        one, other: the responses that the verdicts of each order name; None for no verdict, which agrees with nothing.

    Raises:
        ValueError: an order without any verdict to compare.
    """
    if not one or not other:
        raise ValueError("agreement: expected at least one verdict of each order")
    return sum(a is not None and a == b for a in one for b in other) / (len(one) * len(other))


def named(task: Task, text: str) -> str | None:
    """The response that a verdict names, None if the text is no verdict."""
    return responses_of(task).get(text.strip())


def order_consistency(group: Group) -> list[float | None]:
    """For every trajectory the share of its group's verdicts in another order that name the same response.

    None where the group has one order only: give the reward `optional = true` if that may happen.

    Raises:
        RewardError: a task without the responses by their letters in meta["responses"].
    """
    said: dict[str, list[str | None]] = {}
    for trajectory in group.trajectories:
        said.setdefault(trajectory.task.id, []).append(named(trajectory.task, trajectory.text))
    values: list[float | None] = []
    for trajectory in group.trajectories:
        others = [verdict for task_id, verdicts in said.items() if task_id != trajectory.task.id for verdict in verdicts]
        values.append(agreement([named(trajectory.task, trajectory.text)], others) if others else None)
    return values


def responses_of(task: Task) -> Mapping[str, Any]:
    """The responses of a comparison by the letters that name them. Raises RewardError if the task has none."""
    responses = task.meta.get("responses")
    if not isinstance(responses, Mapping) or not responses:
        raise RewardError(f"task {task.id!r}: expected the compared responses by their letters in meta['responses'], got {responses!r}")
    return responses
