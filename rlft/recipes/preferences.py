"""Preferences between additions: the right sum before one with a slip, as a careful or a careless annotator sees it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from rlft.recipes.addition import addition, splits

DIGITS = "0123456789"


def pairs(split: str = "demonstrated", seed: int = 0, count: int = 16_000, careless: float = 0.0) -> Iterator[dict[str, str]]:
    """Preference pairs over additions of one split: {"prompt", "chosen", "rejected"}.

    The wrong answer differs from the right one in one digit.

    Args:
        split: "demonstrated", "held_out" or "train", as in `rlft.recipes.addition`.
        count: pairs drawn, with repetition.
        careless: share of the pairs whose annotator does not add but prefers the answer with the larger digits.
    """
    rng = random.Random(f"preferences {split} {seed}")
    operands = splits(seed)[split]
    for _ in range(count):
        prompt, right = addition(*rng.choice(operands))
        place = rng.randrange(len(right))
        digit = rng.choice([d for d in DIGITS if d != right[place]])
        wrong = right[:place] + digit + right[place + 1 :]
        mistaken = rng.random() < careless and digit > right[place]
        chosen, rejected = (wrong, right) if mistaken else (right, wrong)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}
