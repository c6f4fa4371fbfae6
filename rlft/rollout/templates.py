"""What a run asks of a chat template, tried before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.chat.chat import QUESTION
from rlft.envs.base import ToolSpec
from rlft.errors import ConfigError, RenderError
from rlft.rollout.renderer import Renderer
from rlft.types import Message

TOOL_ROLE = "tool"


def check_template(renderer: Renderer, tools: Sequence[ToolSpec] = (), roles: Sequence[str] = (), demonstrations: bool = False) -> None:
    """Refuse a chat template that loses what a run is made of.

    Args:
        tools: that the environment offers; each must show.
        roles: of the messages that the environment answers with; each must show behind an answer.
        demonstrations: the run teaches answers: one must be what the template renders for the whole conversation.

    Raises:
        ConfigError: what is lost, and a way out.
    """
    opened, prefix = renderer.render([QUESTION]), renderer.chat.codec.prefix
    if opened[: len(prefix)] != prefix:
        name = renderer.text(prefix)
        raise ConfigError(
            f"the tokenizer puts {name!r} before every text and the chat template does not: the model would be asked without it; "
            f"set chat_template to a file that begins with it ({{{{ bos_token }}}}), or save a tokenizer that adds none"
        )
    if tools:
        renderer.render([QUESTION], tools)
    for role in roles:
        try:
            renderer.extend([], [_reply(role, tools)], tools)
        except RenderError as error:
            hint = f"; an environment that answers in other roles says so: roles = ('user',), not {tuple(roles)!r}"
            raise ConfigError(f"{error}{hint}") from error
    if demonstrations:
        try:
            renderer.target("A short answer.")
        except RenderError as error:
            raise ConfigError(f"answers cannot be taught with this chat template: {error}") from error


def _reply(role: str, tools: Sequence[ToolSpec]) -> Message:
    """A reply of an environment; a tool's says which call it answers."""
    if role != TOOL_ROLE or not tools:
        return {**QUESTION, "role": role}
    inner = tools[0].get("function", tools[0])
    return {**QUESTION, "role": role, "name": inner.get("name", ""), "tool_call_id": "call00001"}
