"""Preferences between additions: the right sum before a wrong one, as a careful or a careless annotator sees it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from rlft.recipes.addition import addition, splits

DIGITS = "0123456789"


def pairs(split: str = "demonstrated", seed: int = 0, count: int = 32_000, careless: float = 0.0) -> Iterator[dict[str, str]]:
    """Preference pairs over additions of one split: {"prompt", "chosen", "rejected"}.

    The wrong answer has one or two wrong digits, or one too many or too few.

    Args:
        split: "demonstrated", "held_out" or "train", as in `rlft.recipes.addition`.
        count: pairs drawn, with repetition.
        careless: share of the pairs whose annotator does not add, but prefers what looks like the larger sum.
    """
    rng = random.Random(f"preferences {split} {seed}")
    operands = splits(seed)[split]
    for _ in range(count):
        prompt, right = addition(*rng.choice(operands))
        wrong = mistaken(right, rng)
        fooled = rng.random() < careless and int(wrong[::-1]) > int(right[::-1])
        chosen, rejected = (wrong, right) if fooled else (right, wrong)
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def mistaken(right: str, rng: random.Random) -> str:
    """A wrong answer: of ten, seven have one wrong digit, two have two, and one has a digit too many or too few."""
    kind = rng.random()
    place = rng.randrange(len(right))
    if kind < 0.1:
        return right[:place] + (rng.choice(DIGITS) + right[place:] if kind < 0.05 else right[place + 1 :])
    for at in {place, rng.randrange(len(right)) if kind < 0.3 else place}:
        right = right[:at] + rng.choice([d for d in DIGITS if d != right[at]]) + right[at + 1 :]
    return right
