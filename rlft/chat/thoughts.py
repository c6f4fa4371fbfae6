"""Where a model's thought begins and ends in what it wrote, by the marks of the model families."""

from __future__ import annotations

# What opens a thought and what ends it; behind the end stands the answer.
MARKS = (
    ("<think>", "</think>"),  # DeepSeek, Qwen, GLM and most others
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),  # gpt-oss
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),  # gpt-oss before a call
)


def answer_of(text: str) -> str | None:
    """What stands behind the last thought of a text, all of it where there is none; None where the thought has not ended."""
    for _, end in MARKS:
        text = text.rpartition(end)[2]
    return None if any(opening in text for opening, _ in MARKS) else text


def left_open(text: str) -> str:
    """The mark of the thought that a text ends in, "" where it ends in none."""
    ends: dict[str, int] = {}
    for opening, end in MARKS:
        ends[opening] = max(ends.get(opening, -1), text.rfind(end))
    return next((opening for opening, end in ends.items() if text.rfind(opening) > end), "")
