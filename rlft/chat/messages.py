"""What a message is: a role, and text. Other shapes that data and environments use are made so, or refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from rlft.errors import RenderError
from rlft.types import Message

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))  # characters that Unicode gives no meaning


def normal(messages: Any) -> list[Message]:
    """Messages with text as content: text parts are joined, None is empty.

    Raises:
        RenderError: a shape that is no list of messages, or a part that is no text.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        what = "a text" if isinstance(messages, str) else "a single message" if isinstance(messages, Mapping) else type(messages).__name__
        raise RenderError(f"expected a list of messages, got {what}: {messages!r:.80}; write [{{'role': ..., 'content': ...}}]")
    return [_message(message, i) for i, message in enumerate(messages)]


def _message(message: Any, i: int) -> Message:
    said = isinstance(message, Mapping) and ("content" in message or message.get("tool_calls"))
    if not said or not isinstance(message.get("role"), str) or not message["role"]:
        raise RenderError(f"message {i}: expected text in 'role' and 'content', got {message!r:.80}")
    return {**message, "content": text_of(message.get("content"), f"message {i}")}


def text_of(content: Any, where: str = "message") -> str:
    """A message's content as text.

    Raises:
        RenderError: neither text, nor None, nor a list of parts {"type": "text", "text": ...}.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RenderError(f"{where}: expected text in 'role' and 'content', or text parts in 'content', got {content!r:.80}")
    for number, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RenderError(f"{where}: part {number} of 'content' is no text part {{'type': 'text', 'text': ...}}, but {part!r:.80}")
    return "".join(part["text"] for part in content)


def fresh(number: int, *taken: str) -> list[str]:
    """`number` private characters that stand in none of `taken`, neither as they are nor escaped as JSON does it.

    Raises:
        RenderError: there are none left.
    """
    found: list[str] = []
    for code in chain.from_iterable(PRIVATE):
        if len(found) == number:
            return found
        if not any(chr(code) in text or escaped(chr(code)) in text for text in taken):
            found.append(chr(code))
    if len(found) < number:
        raise RenderError("the messages use up every private character of Unicode; leave some")
    return found


def escaped(char: str) -> str:
    """A character as JSON in ASCII writes it."""
    return "".join(f"\\u{int.from_bytes(pair, 'big'):04x}" for pair in _units(char))


def _units(char: str) -> Iterable[bytes]:
    encoded = char.encode("utf-16-be")
    return (encoded[i : i + 2] for i in range(0, len(encoded), 2))
