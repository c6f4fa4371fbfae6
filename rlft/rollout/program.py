"""Policy x environment -> trajectory. Token-in, token-out; no ray, no vllm, no torch."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Sequence
from typing import Any, Protocol, TypeVar

from rlft.chat.messages import normal
from rlft.envs.base import Env, EnvFn, Step, ToolSpec
from rlft.errors import RenderError, RewardError
from rlft.rollout.renderer import Renderer
from rlft.types import Completion, Group, Message, Source, Task, Trajectory, Turn

Answer = TypeVar("Answer")
GIVEN = "given"  # tag of a first turn that was not sampled
VERDICT = "env"  # part of a turn that holds the reward of an environment whose rewards tell how good each turn was


class Policy(Protocol):
    """Samples a completion of a context; `room` is what the context limit leaves."""

    @property
    def version(self) -> int: ...
    def room(self, prompt_ids: Sequence[int]) -> int: ...
    async def generate(self, prompt_ids: Sequence[int]) -> Completion: ...


async def run_episode(
    task: Task, env: Env, policy: Policy, renderer: Renderer, max_turns: int, index: int = 0, group_id: str = ""
) -> Trajectory:
    """Play one episode: the default program.

    Sampled ids are carried forward verbatim. The episode is "completed" when the
    environment says it is done after an answer that ended by itself; it is "truncated"
    when an answer, the context or the number of turns ran out; it is "failed" when the
    environment raised, or gave a reward that is no finite number. A task's `first_attempt` is
    the first turn, tagged "given", instead of a sample: its tokens are hints.
    """
    turns: list[Turn] = []
    step = Step()
    try:
        observed = _said(await _ask(env.reset(), env), env)
        ids = renderer.render(observed, env.tools)
        sources = [int(Source.PROMPT)] * len(ids)
        while policy.room(ids) > 0:
            injected = bool(task.first_attempt) and not turns
            tag = GIVEN if injected else getattr(env, "tag", "")
            completion = _injected(task, policy, renderer, observed, env.tools) if injected else await policy.generate(ids)
            action = renderer.parse(completion.token_ids)
            step = _checked(await _ask(env.step(action), env), env)
            sources = sources + [int(Source.HINT if injected else Source.POLICY)] * len(completion.token_ids)
            parts = {VERDICT: float(step.reward)} if getattr(env, "gives_turn_rewards", False) else {}
            turns.append(Turn(ids, completion, action, sources, step.reward, tag, observed, parts, renderer.opened(ids, observed)))
            if step.done or len(turns) == max_turns or completion.finish_reason != "stop":
                break
            sampled, observed = list(completion.token_ids), _said(step.messages, env)
            appended = renderer.extend(sampled, observed, env.tools)
            ids = [*ids, *sampled, *appended]
            sources = sources + [int(Source.ENVIRONMENT)] * len(appended)
    except RewardError as error:
        return Trajectory(task, index, tuple(turns), "failed", group_id, error=str(error))
    finally:
        await env.close()
    if not turns:
        return Trajectory(task, index, (), "failed", group_id, error=f"the first prompt, {len(ids)} tokens, leaves no room for an answer")
    ended = step.done and turns[-1].completion.finish_reason == "stop"
    return Trajectory(task, index, tuple(turns), "completed" if ended else "truncated", group_id, feedback=step.feedback)


def _injected(task: Task, policy: Policy, renderer: Renderer, asked: Sequence[Message], tools: Sequence[ToolSpec]) -> Completion:
    ids = renderer.target(task.first_attempt, asked, tools)
    return Completion(ids, [0.0] * len(ids), "stop", policy.version)


async def _ask(answer: Awaitable[Answer], env: Env) -> Answer:
    """What the environment answers; what it raises makes the trajectory ungradable, with the cause."""
    try:
        return await answer
    except Exception as error:
        raise RewardError(f"environment {type(env).__name__!r} raised {type(error).__name__}: {error}") from error


def _said(messages: Any, env: Env) -> tuple[Message, ...]:
    """What an environment said, as messages. Raises RenderError."""
    try:
        return tuple(normal(messages))
    except RenderError as error:
        raise RenderError(f"environment {type(env).__name__!r} said no messages: {error}") from error


def _checked(step: Step, env: Env) -> Step:
    if isinstance(step.reward, bool | int | float) and math.isfinite(step.reward):
        return step
    raise RewardError(f"environment {type(env).__name__!r} gave the reward {step.reward!r}; expected a finite number")


async def run_group(task: Task, group_id: str, make_env: EnvFn, policies: Sequence[Policy], renderer: Renderer, max_turns: int) -> Group:
    """Play one independent episode per policy handle (they differ in their seeds), at once; a task's variants in turn."""
    ways = itertools.cycle((task, *task.variants))
    played = await asyncio.gather(
        *(
            run_episode(way, make_env(way), policy, renderer, max_turns, i, group_id)
            for i, (policy, way) in enumerate(zip(policies, ways, strict=False))
        )
    )
    return Group(group_id, tuple(played))
