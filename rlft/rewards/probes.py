"""Right, wrong and degenerate answers to a task: what a reward should pay, and what it should not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlft.errors import ConfigError
from rlft.rewards.grader import spoken
from rlft.types import Task, Trajectory

GOLD = "gold"
SLOT = "{answer}"  # in a template
LONG = "let me think about this once more, step by step, before i say anything. " * 1000
UNCLOSED = "<think>let me see <answer> \\boxed{ ```"
REPEATS, MAX_LISTED = 50, 9
CHARACTERS_PER_TOKEN = 4  # about; for rewards of length


@dataclass(frozen=True)
class Probe:
    """An answer to try a reward with."""

    kind: str
    text: str
    lenient: bool = False  # the gold answer stands in it, so a reward that reads leniently pays it


def gold_text(task: Task, field: str = "") -> str | None:
    """What a right answer says, or None if the task does not tell: its answer, or a field of its meta; no text is written as JSON."""
    value = task.meta.get(field) if field else task.answer
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def probes(task: Task, gold: str, others: Sequence[str] = (), template: str = SLOT) -> list[Probe]:
    """The gold answer first, then answers that should earn less.

    Args:
        gold: what a right answer says (`gold_text`).
        others: what right answers to other tasks say.
        template: how an answer is said, "{answer}" standing for it: "<answer>{answer}</answer>". Wrong answers
            are said in it too, so that a format alone earns nothing.

    Raises:
        ConfigError: the template has no "{answer}".
    """
    if SLOT not in template:
        raise ConfigError(f"template {template!r}; expected a text with {SLOT} in it")

    def put(answer: str) -> str:
        return template.replace(SLOT, answer)

    prompt = "\n".join(message["content"] for message in task.messages if isinstance(message.get("content"), str))
    different = [other for other in dict.fromkeys(others) if other.strip().casefold() != gold.strip().casefold()]
    texts = {
        "empty": "",
        "blank": " \n\t \n",
        "nothing in the template": put("") if template != SLOT else "",
        "prompt echoed": prompt,
        "another task's gold": put(different[0]) if different else "",
        "one character changed": put(_changed(gold)),
        "every option listed": put(_listed(task, gold, different)),
        "i don't know": put("I don't know"),
        "very long": LONG,
        "unclosed tags": UNCLOSED,
        "gold, unclosed": gold.join(re.sub(r"</[^>]*>|\}", "", part) for part in template.split(SLOT)) if template != SLOT else "",
        "gold repeated": put(" ".join([gold] * REPEATS)),
        "gold denied": f"I cannot answer this. It is certainly not {put(gold)}.",
    }
    made = [Probe(kind, text, kind != "every option listed" and _holds(text, gold)) for kind, text in texts.items()]
    kept = [probe for probe in made if (probe.text or probe.kind == "empty") and probe.text != put(gold)]
    return [Probe(GOLD, put(gold)), *kept]


def trajectory_of(task: Task, text: str, index: int = 0) -> Trajectory:
    """A trajectory in which `text` was said in about as many tokens as it would take; their ids are negative."""
    trajectory = spoken(task, text)
    (turn,) = trajectory.turns
    num_sampled = math.ceil(len(text) / CHARACTERS_PER_TOKEN)
    sampled = replace(turn.completion, token_ids=range(-num_sampled, 0))
    return replace(trajectory, turns=(replace(turn, completion=sampled),), index=index)


def _holds(text: str, gold: str) -> bool:
    return bool(gold) and re.search(rf"(?<!\w){re.escape(gold)}(?!\w)", text) is not None


def _changed(gold: str) -> str:
    """With its last letter or digit replaced by the one after it."""
    for i in range(len(gold) - 1, -1, -1):
        if gold[i].isascii() and gold[i].isalnum():
            after = {"9": "0", "z": "a", "Z": "A"}.get(gold[i]) or chr(ord(gold[i]) + 1)
            return gold[:i] + after + gold[i + 1 :]
    return f"{gold}x"


def _listed(task: Task, gold: str, different: Sequence[str]) -> str:
    """Every option with the gold one neither first nor last, where a reward would find it by chance."""
    others = [option for option in _options(task, gold) or different[:MAX_LISTED] if option != gold]
    if not others:
        return ""
    half = max(1, len(others) // 2)
    return ", ".join([*others[:half], gold, *(others[half:] or others[:1])])


def _options(task: Task, gold: str) -> list[str]:
    """The options that a task names or that its answer suggests; none if it is open."""
    given: Any = next((task.meta[name] for name in ("choices", "options") if task.meta.get(name)), None)
    if isinstance(given, Mapping):
        given = given.get("label", given.get("text", list(given)))
    listed = [str(option) for option in given] if isinstance(given, Sequence) and not isinstance(given, str) else []
    if re.fullmatch(r"[A-J]", gold):
        return [chr(ord("A") + i) for i in range(max(len(listed), ord(gold) - ord("A") + 1, 4))]
    for pair in (("yes", "no"), ("true", "false")):
        if gold.lower() in pair:
            return [option.capitalize() if gold[0].isupper() else option for option in pair]
    return listed
