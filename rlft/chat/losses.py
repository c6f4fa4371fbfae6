"""What a chat template silently leaves out: found with private characters in place of everything that was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlft.chat.messages import fresh
from rlft.chat.template import ChatTemplate
from rlft.errors import RenderError
from rlft.types import Message

Shape = tuple[Any, ...]


def shape_of(messages: Sequence[Message], tools: Sequence[Any], open_answer: bool) -> Shape:
    """What of a conversation decides which of its parts a template shows: roles, and where there is content, calls and tools."""
    return (open_answer, len(tools), *((m["role"], bool(m["content"]), len(_calls(m))) for m in messages))


def check_shown(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Any], open_answer: bool) -> None:
    """Refuse a conversation of which the template leaves out a message, a call or the tools.

    Raises:
        RenderError: naming the role, or the tools and a way out.
    """
    number = 1 + len(messages) + sum(len(_calls(m)) for m in messages)
    tool_mark, *marks = fresh(number, template.source, repr(list(messages)), repr(list(tools)))
    lost: dict[str, str] = {}
    marked: list[Message] = []
    for message in messages:
        said, calls = dict(message), []
        if message["content"]:
            said["content"] = mark = marks.pop()
            lost[mark] = f"role {message['role']!r}"
        for call in _calls(message):
            mark = marks.pop()
            calls.append(_named(call, mark))
            lost[mark] = f"the tool calls of a message of role {message['role']!r}"
        marked.append({**said, "tool_calls": calls} if calls else said)
    text = template.text(marked, [_named(tool, tool_mark) for tool in tools], open_answer)
    if tools and tool_mark not in text:
        names = ", ".join(repr(_function(tool).get("name")) for tool in tools)
        raise RenderError(
            f"the chat template has no place for tools, and {names} would never be shown: set chat_template to one that renders them, "
            "or say in the environment's messages how they are called and leave its `tools` empty"
        )
    missing = list(dict.fromkeys(what for mark, what in lost.items() if mark not in text))
    if missing:
        roles = " ".join(message["role"] for message in messages)
        told = f"the chat template does not render {' and '.join(missing)} in a conversation of {roles}"
        raise RenderError(f"{told}; change the roles, or set chat_template to one that does")


def _calls(message: Message) -> Sequence[Any]:
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple) or not all(isinstance(call, Mapping) for call in calls):
        raise RenderError(f"expected a list of objects in 'tool_calls', got {calls!r:.80}")
    return calls


def _function(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = spec.get("function")
    return inner if isinstance(inner, Mapping) else spec


def _named(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tool or a call under another name."""
    inner = {**_function(spec), "name": name}
    return {**spec, "function": inner} if isinstance(spec.get("function"), Mapping) else inner
