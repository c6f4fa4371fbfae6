"""A task on which a tiny model can correct itself: say first whether a sum is odd, then work it out.

"385217=" asks for "0:110010": 1 if the sum of the digits is odd, a colon, then 1 or 0 for the sum of the first digit, of
the first two, and so on. The form wants the result before the working, so a first attempt has to guess it: a
small model cannot add six digits in one go, and its guess is right half of the time. The working, digit by digit, it
can do; with a first attempt before its eyes, the result stands at the end of that. Who looks again can be right.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from rlft.types import Task

NUM_DIGITS = 6
SIZES = {"demonstrated": 20_000, "train": 8000, "held_out": 400}
AGAIN = "?"  # asks for the second attempt


def parity(digits: str) -> tuple[str, str]:
    """Prompt and answer: "385217" gives ("385217=", "0:110010")."""
    odd, total = [], 0
    for digit in digits:
        total += int(digit)
        odd.append(str(total % 2))
    return f"{digits}=", f"{odd[-1]}:{''.join(odd)}"


def splits(seed: int) -> dict[str, list[str]]:
    """Disjoint strings of digits: those demonstrated, those for reinforcement, those held out."""
    drawn = iter(random.Random(f"digits {seed}").sample(range(10**NUM_DIGITS), sum(SIZES.values())))
    return {split: [f"{next(drawn):0{NUM_DIGITS}d}" for _ in range(size)] for split, size in SIZES.items()}


def tasks(split: str, seed: int = 0) -> list[Task]:
    """Problems of one split: "train", "held_out" or "demonstrated"."""
    worked = map(parity, splits(seed)[split])
    return [Task(f"{split}/{prompt}", ({"role": "user", "content": prompt},), answer) for prompt, answer in worked]


def demonstrations(
    seed: int = 0, count: int = 38_400, guess: float = 0.4, slip: float = 0.15, keep: float = 0.7, mend: float = 0.4
) -> Iterator[dict[str, Any]]:
    """First and second attempts in turn, for a policy whose second look is worth nothing yet: it spoils about as much as it mends.

    Args:
        guess: share of first attempts whose result is wrong.
        slip: share of first attempts whose working has a wrong place.
        keep: share of right first attempts that are repeated; the others get a wrong result.
        mend: share of wrong first attempts that are put right; the others are repeated.
    """
    rng = random.Random(f"demonstrations {seed}")
    shown = splits(seed)["demonstrated"]
    for number in range(count):
        prompt, answer = parity(rng.choice(shown))
        first = wrong_at(0, answer) if rng.random() < guess else answer
        if rng.random() < slip:
            first = wrong_at(rng.randrange(2, len(answer)), first)
        asked = {"role": "user", "content": prompt}
        if number % 2 == 0:
            yield {"prompt": [asked], "answer": first}
            continue
        right = rng.random() < (keep if first == answer else mend)
        second = answer if right else wrong_at(0, answer) if first == answer else first
        yield {"prompt": [asked, {"role": "assistant", "content": first}, {"role": "user", "content": AGAIN}], "answer": second}


def wrong_at(place: int, answer: str) -> str:
    """The answer with the other of 0 and 1 at one place."""
    return answer[:place] + "10"[int(answer[place])] + answer[place + 1 :]
