"""Reflect, retry, reward (arXiv:2505.24726): after a wrong answer the policy says why, then tries once more."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.envs.base import Step, ToolSpec
from rlft.envs.check import Check, find_check, said
from rlft.types import Message, Task

REFLECT = "That answer is wrong. Say briefly what went wrong and what to do differently."
RETRY = "Now answer again."


class ReflectRetry:
    """Turns are tagged "attempt", then after a wrong one "reflection" and "retry"; a right answer earns 1 in its turn.

    `rollout.max_turns` has to be at least 3.

    Args:
        check: "exact", or "module:function" of (task, text): whether an answer is right.
        reflect, retry: what asks for the reflection, and for the second answer.

    Raises:
        ConfigError: no such check.
    """

    tools: Sequence[ToolSpec] = ()
    tags = ("attempt", "reflection", "retry")
    num_turns = 3
    gives_turn_rewards = True

    def __init__(self, task: Task, check: str | Check = "exact", reflect: str = REFLECT, retry: str = RETRY) -> None:
        self.task, self.check, self.tag = task, find_check(check), "attempt"
        self.asks = {"attempt": ("reflection", reflect), "reflection": ("retry", retry)}

    async def reset(self) -> list[Message]:
        return list(self.task.messages)

    async def step(self, action: Message) -> Step:
        right = self.tag != "reflection" and self.check(self.task, said(action))
        if right or self.tag == "retry":
            return Step(reward=float(right), done=True)
        self.tag, message = self.asks[self.tag]
        return Step([{"role": "user", "content": message}])

    async def close(self) -> None: ...
