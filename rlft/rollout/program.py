"""Policy x environment -> trajectory. Token-in, token-out; no ray, no vllm, no torch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from rlft.envs.base import Env, EnvFn, Step
from rlft.rollout.renderer import Renderer
from rlft.types import Completion, Group, Source, Task, Trajectory, Turn


class Policy(Protocol):
    """Samples a completion of a context; `room` is what the context limit leaves."""

    def room(self, prompt_ids: Sequence[int]) -> int: ...
    async def generate(self, prompt_ids: Sequence[int]) -> Completion: ...


async def run_episode(
    task: Task, env: Env, policy: Policy, renderer: Renderer, max_turns: int, index: int = 0, group_id: str = ""
) -> Trajectory:
    """Play one episode: the default program.

    Sampled ids are carried forward verbatim. The episode is "completed" when the
    environment says it is done after an answer that ended by itself; it is "truncated"
    when an answer, the context or the number of turns ran out.
    """
    turns: list[Turn] = []
    step = Step()
    try:
        ids = renderer.render(await env.reset(), env.tools)
        sources = [int(Source.PROMPT)] * len(ids)
        while True:
            tag = getattr(env, "tag", "")
            completion = await policy.generate(ids)
            action = renderer.parse(completion.token_ids)
            step = await env.step(action)
            sources = sources + [int(Source.POLICY)] * len(completion.token_ids)
            turns.append(Turn(ids, completion, action, sources, step.reward, tag))
            if step.done or len(turns) == max_turns or completion.finish_reason != "stop":
                break
            sampled = list(completion.token_ids)
            appended = renderer.extend(sampled, step.messages, env.tools)
            ids = [*ids, *sampled, *appended]
            sources = sources + [int(Source.ENVIRONMENT)] * len(appended)
            if policy.room(ids) < 1:
                break
    finally:
        await env.close()
    ended = step.done and turns[-1].completion.finish_reason == "stop"
    return Trajectory(task, index, tuple(turns), "completed" if ended else "truncated", group_id, feedback=step.feedback)


async def run_group(task: Task, group_id: str, make_env: EnvFn, policies: Sequence[Policy], renderer: Renderer, max_turns: int) -> Group:
    """Play one independent episode per policy handle (they differ in their seeds), at once."""
    played = await asyncio.gather(
        *(run_episode(task, make_env(task), policy, renderer, max_turns, i, group_id) for i, policy in enumerate(policies))
    )
    return Group(group_id, tuple(played))
