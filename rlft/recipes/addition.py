"""A task that a tiny model can learn: two-digit addition, least significant digit first.

Written in the order in which it is worked out and in fixed places, 47 + 85 = 132 becomes
"74+58=" -> "231": within reach of a model of under a million parameters, which at first is
right only sometimes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from rlft.types import Task

NUM_OPERANDS = 100
NUM_DEMONSTRATED = 4000  # pairs shown by the demonstrations; reinforcement never sees them
NUM_HELD_OUT = 400


def addition(left: int, right: int) -> tuple[str, str]:
    """Prompt and answer: 47 and 85 give ("74+58=", "231")."""
    return f"{_digits(left, 2)}+{_digits(right, 2)}=", _digits(left + right, 3)


def _digits(number: int, places: int) -> str:
    """Least significant first, filled with zeros."""
    return f"{number:0{places}d}"[::-1]


def splits(seed: int) -> dict[str, list[tuple[int, int]]]:
    """Disjoint pairs of operands: those demonstrated, those for reinforcement, those held out."""
    pairs = [(a, b) for a in range(NUM_OPERANDS) for b in range(NUM_OPERANDS)]
    random.Random(f"pairs {seed}").shuffle(pairs)
    held_out = pairs[NUM_DEMONSTRATED : NUM_DEMONSTRATED + NUM_HELD_OUT]
    return {"demonstrated": pairs[:NUM_DEMONSTRATED], "held_out": held_out, "train": pairs[NUM_DEMONSTRATED + NUM_HELD_OUT :]}


def tasks(split: str, seed: int = 0) -> list[Task]:
    """Addition problems of one split: "train", "held_out" or "demonstrated"."""
    worked = (addition(*pair) for pair in splits(seed)[split])
    return [Task(f"{split}/{prompt}", ({"role": "user", "content": prompt},), answer) for prompt, answer in worked]


def demonstrations(seed: int = 0, count: int = 51_200, slip: float = 0.6) -> Iterator[dict[str, str]]:
    """Worked additions of which a share `slip` carries one wrong digit, so that the policy
    learns to be right only sometimes: {"prompt": ..., "answer": ...}."""
    rng = random.Random(f"demonstrations {seed}")
    pairs = splits(seed)["demonstrated"]
    for _ in range(count):
        prompt, answer = addition(*rng.choice(pairs))
        if rng.random() < slip:
            place = rng.randrange(len(answer))
            wrong = rng.choice([d for d in "0123456789" if d != answer[place]])
            answer = answer[:place] + wrong + answer[place + 1 :]
        yield {"prompt": prompt, "answer": answer}
