"""Ask once, stop."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.envs.base import Step, ToolSpec
from rlft.types import Message, Task


class SingleTurn:
    """The task's messages are the prompt; the first answer ends the episode."""

    tools: Sequence[ToolSpec] = ()

    def __init__(self, task: Task) -> None:
        self.task = task

    async def reset(self) -> list[Message]:
        return list(self.task.messages)

    async def step(self, action: Message) -> Step:
        return Step(done=True)

    async def close(self) -> None: ...
