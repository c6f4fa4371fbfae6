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
)


def answer_of(text: str) -> str | None:
    """What stands behind the last thought of a text, all of it where there is none; None where the thought has not ended."""
    for opening, end in MARKS:
        text = text.rpartition(end)[2]
        if opening in text:
            return None
    return text


def left_open(text: str) -> str:
    """The mark of the thought that a text ends in, "" where it ends in none."""
    for opening, end in MARKS:
        if text.rfind(opening) > text.rfind(end):
            return opening
    return ""
