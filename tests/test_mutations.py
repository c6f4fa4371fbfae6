"""Every deliberate bug in mutations.toml still fits the code, so that `make mutate` tries all of them."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def stale(mutations: list[dict]) -> list[str]:
    """Bugs whose text does not stand in their file exactly once."""
    return [f"{m['file']}: {m['text']!r}" for m in mutations if (ROOT / m["file"]).read_text().count(m["text"]) != 1]


def test_every_deliberate_bug_fits_the_code():
    assert stale(tomllib.loads((ROOT / "tests" / "mutations.toml").read_text())["mutation"]) == []


def test_a_text_that_the_code_no_longer_holds_is_found():
    assert stale([{"file": "rlft/loop.py", "text": "no such line"}, {"file": "rlft/loop.py", "text": "async def train("}]) == [
        "rlft/loop.py: 'no such line'"
    ]
