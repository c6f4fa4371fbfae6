"""Ask, and ask again: several attempts at one task in one conversation."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.envs.base import Step, ToolSpec
from rlft.envs.check import Check, find_check, said
from rlft.errors import ConfigError
from rlft.types import Message, Task

MESSAGE = "There may be an error in the answer above. Correct it if there is one, and give the whole answer again."


class Attempts:
    """Every turn is an "attempt"; after all but the last the policy is asked for another (SCoRe, arXiv:2409.12917).

    Args:
        num_attempts: at least 1. `rollout.max_turns` has to allow as many.
        message: what asks for another attempt. It is the same after a right and a wrong one.
        check: "exact", or "module:function" of (task, text): the episode ends with the first attempt that passes, which
            earns 1 (RISE with an oracle, arXiv:2407.18219). Without it no verdict reaches the episode.

    Raises:
        ConfigError: an option out of range, or no such check.
    """

    tools: Sequence[ToolSpec] = ()
    tag = "attempt"
    tags = ("attempt",)

    def __init__(self, task: Task, num_attempts: int = 2, message: str = MESSAGE, check: str | Check | None = None) -> None:
        if num_attempts < 1:
            raise ConfigError(f"env.num_attempts: expected at least 1, got {num_attempts}")
        self.task, self.message, self.left, self.num_turns = task, message, num_attempts, num_attempts
        self.check = None if check is None else find_check(check)
        self.gives_turn_rewards = check is not None

    async def reset(self) -> list[Message]:
        return list(self.task.messages)

    async def step(self, action: Message) -> Step:
        self.left -= 1
        right = self.check is not None and self.check(self.task, said(action))
        if right or not self.left:
            return Step(reward=float(right), done=True)
        return Step([{"role": "user", "content": self.message}])

    async def close(self) -> None: ...
