"""A task for a real model: one simple sentence with a given word, and rules that can be checked word by word.

No short cut is paid: one word is too short for a sentence, a sentence without the word is about something else, and
whoever says a word twice, or what another answer of the group says, loses a part of the reward.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from rlft.errors import TaskError
from rlft.types import Group, Task, Trajectory

MIN_WORDS, MAX_WORDS = 6, 12
SYSTEM = "You write in simple English, six to twelve words."
NUM_HELD_OUT = 48
LONG = 4  # letters from which a word may stand only once

# Things that can be counted, so that "a" or "an" goes before each.
_THINGS = """
airplane ant apple artist baby bakery ball banana bank basket bear bed bee bell bicycle bird boat book bottle bowl box boy
bridge brother brush bucket building bus butterfly button cabin cake camel camera candle car carpet castle cat chair chicken
child church circle city clock cloud coat coin cook cow crown cup dancer desert desk dentist doctor dog doll door dragon drawing
dream dress driver drum duck eagle egg elephant engine farm farmer father field fire fish flag flower forest fork fox friend
frog game garden gate ghost giant giraffe girl glass goat grandmother guitar hammer hat hen hill holiday horse hospital hotel
house hunter island jacket key king kitchen kite knife ladder lake lamp leaf lemon letter library lighthouse lion lizard
machine mango map market mirror monkey moon mother mountain mouse museum neighbor nest newspaper notebook nurse ocean onion
orange oven owl painter palace parade park parrot pen pencil penguin piano picnic picture pig pillow pilot planet plant poem
policeman pond potato prince puppy queen rabbit radio rainbow ring river road robot rocket roof rose sailor sandwich school
sculpture sheep ship shirt shoe shop singer sister snake snowman soldier song spider spoon squirrel stable star station statue
stone storm story stove street student sweater table tailor taxi teacher telephone tent theater ticket tiger toy tractor train
tree truck turtle umbrella uncle valley village violin waiter wall watch waterfall wedding whale wheel window wizard wolf woman
"""
THINGS: Sequence[str] = _THINGS.split()

# Sentences for a warm start: true of most things, and within the rules.
PATTERNS = (
    "My {who} drew {a} {thing} on the first page.",
    "We saw {a} {thing} on the way to school {when}.",
    "{A} {thing} made my {who} smile {when}.",
    "My {who} told me a long tale about {a} {thing}.",
    "There was {a} {thing} in the photo from {where}.",
    "The {thing} in the tale came from {where}.",
    "I dreamed about {a} {thing} {when}.",
    "In {where} you can find {a} {thing}.",
)
FILLERS = {
    "who": ("cousin", "aunt", "grandfather", "colleague"),
    "when": ("today", "this morning", "last night", "on Sunday"),
    "where": ("Spain", "the old town", "the north", "another country"),
}

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_PLAIN = re.compile(r"[A-Za-z ,'’-]+\.")


def task(thing: str, split: str) -> Task:
    """The request for one sentence with the name of a thing, which is the task's answer."""
    asked = f'Write one short, simple sentence with the word "{thing}".'
    return Task(f"{split}/{thing}", ({"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}), thing)


def splits(seed: int) -> dict[str, list[str]]:
    """Disjoint things: those to train on and those held out."""
    things = random.Random(f"things {seed}").sample(THINGS, len(THINGS))
    return {"held_out": things[:NUM_HELD_OUT], "train": things[NUM_HELD_OUT:]}


def tasks(split: str, seed: int = 0) -> list[Task]:
    """Requests of one split: "train" or "held_out"."""
    return [task(thing, split) for thing in splits(seed)[split]]


def demonstrations(seed: int = 0, count: int = 128) -> Iterator[dict[str, Any]]:
    """Sentences about things of the split "train", within the rules: {"prompt": ..., "answer": ...}."""
    rng = random.Random(f"demonstrations {seed}")
    things = splits(seed)["train"]
    for _ in range(count):
        thing = rng.choice(things)
        filled = {name: rng.choice(choices) for name, choices in FILLERS.items()}
        a = "an" if thing[0] in "aeiou" else "a"
        text = rng.choice(PATTERNS).format(thing=thing, a=a, A=a.capitalize(), **filled)
        yield {"prompt": list(task(thing, "train").messages), "answer": text}


def length(task: Task, trajectory: Trajectory) -> float:
    """1 for six to twelve words; else 0."""
    return float(MIN_WORDS <= len(_WORD.findall(trajectory.text)) <= MAX_WORDS)


def sentence(task: Task, trajectory: Trajectory) -> float:
    """1 for one sentence of letters and commas, from a capital to its only full stop; else 0."""
    said = trajectory.text.strip()
    return float(said[:1].isupper() and _PLAIN.fullmatch(said) is not None)


def topic(task: Task, trajectory: Trajectory) -> float:
    """1 if the thing is named, as it is or in a plural with s; else 0. Raises TaskError for a task without one."""
    if not isinstance(task.answer, str) or not task.answer:
        raise TaskError(f"topic: task {task.id!r}: expected the word to use as its answer, got {task.answer!r}")
    named = {task.answer, f"{task.answer}s", f"{task.answer}es"}
    return float(not named.isdisjoint(_words(trajectory)))


def varied(task: Task, trajectory: Trajectory) -> float:
    """1 if something is said and no word of four letters or more is said twice; else 0."""
    counts = Counter(word for word in _words(trajectory) if len(word) >= LONG)
    return float(bool(counts) and max(counts.values()) == 1)


RULES = (length, sentence, topic, varied)


def follows(task: Task, trajectory: Trajectory) -> float:
    """1 if all rules are kept; else 0."""
    return float(all(rule(task, trajectory) for rule in RULES))


def original(group: Group) -> list[float]:
    """1 for an answer that no other of its group repeats word for word; else 0."""
    said = [" ".join(_words(trajectory)) for trajectory in group.trajectories]
    counts = Counter(said)
    return [float(counts[text] == 1) for text in said]


def _words(trajectory: Trajectory) -> list[str]:
    return [word.lower() for word in _WORD.findall(trajectory.text)]
