"""What an environment is: an object that answers the policy, in messages, until it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlft.types import Message, Task

ToolSpec = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """The environment's reply: messages to append, the turn's reward, whether to stop."""

    messages: Sequence[Message] = ()
    reward: float = 0.0
    done: bool = False
    feedback: str = ""


class Env(Protocol):
    """One episode, one instance: built from a Task, reset once, closed once.

    `tools` are function schemas that the chat template renders. An environment may name the turn
    it asks for next in `tag` ("attempt", "reflection", ...), all that it may name in `tags`, say in `num_turns` how many
    turns an episode can need (`rollout.max_turns` must allow them), and say with `gives_turn_rewards = True`
    that the rewards of its turns tell how good each was, as algorithms that need "turn_rewards" ask.
    """

    tools: Sequence[ToolSpec]

    async def reset(self) -> list[Message]: ...
    async def step(self, action: Message) -> Step: ...
    async def close(self) -> None: ...


EnvFn = Callable[[Task], Env]
