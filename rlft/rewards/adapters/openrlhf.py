"""Reward functions and reward servers written for OpenRLHF."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from rlft.errors import ConfigError, RewardError
from rlft.rewards.adapters.calling import found, importable, noted, one_each, prompt_text, said, then
from rlft.rewards.grader import defaults
from rlft.rewards.http import check_url, client, post
from rlft.rewards.wire import plain
from rlft.types import Group


@defaults(check=importable)
def openrlhf_reward(group: Group, *, function: str | Callable[..., Any]) -> Any:
    """What `reward_func(queries, prompts, labels)` gives: {"rewards", "scores", "extra_logs"}, or the rewards alone,
    as lists or tensors.

    A query is its prompt followed by the answer; a prompt is the texts of its messages, each ended by a line
    break (OpenRLHF has the chat template's text there). Labels are the tasks' answers. Scores and extra logs become feedback.

    Args:
        function: "module:attribute", or the function; it may be async.

    Raises:
        RewardError: it returned no rewards, or not one per answer.
    """
    batch = _batch(group)
    returned = found(function)(batch["query"], batch["prompts"], batch["labels"])
    return then(returned, lambda given: _verdicts(given, len(group.trajectories), "openrlhf_reward: the function"))


@defaults(timeout_s=800.0)
class OpenRLHFServer:
    """A server with OpenRLHF's interface: POST {"query", "prompts", "labels"} -> {"rewards", ...}, read as of `openrlhf_reward`.

    Args:
        url: of the endpoint, such as http://host:5000/get_reward.
        request_timeout_s: of one try.
        retries: further tries where the server cannot be reached or answers with a server error.
    """

    def __init__(self, *, url: str, request_timeout_s: float = 180.0, retries: int = 3) -> None:
        check_url(url, "openrlhf_server")
        if request_timeout_s <= 0 or retries < 0:
            raise ConfigError("openrlhf_server: expected request_timeout_s above 0 and retries of 0 or more")
        self.url, self.request_timeout_s, self.retries = url, request_timeout_s, retries
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        self._client = client(self.request_timeout_s)

    async def score(self, group: Group) -> list[tuple[Any, str]]:
        """One value per trajectory. Raises RewardError."""
        assert self._client is not None, "start the scorer first"
        body = json.dumps(plain(_batch(group), "openrlhf_server"), allow_nan=False).encode()
        returned = await post(self._client, self.url, body, {}, self.request_timeout_s, self.retries)
        return _verdicts(returned, len(group.trajectories), f"openrlhf_server: {self.url}")

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


def _batch(group: Group) -> dict[str, list[Any]]:
    prompts = [prompt_text(trajectory.task) for trajectory in group.trajectories]
    answers = [said(trajectory) for trajectory in group.trajectories]
    labels = [trajectory.task.answer for trajectory in group.trajectories]
    return {"query": [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], "prompts": prompts, "labels": labels}


def _verdicts(returned: Any, count: int, what: str) -> list[tuple[Any, str]]:
    named = returned if isinstance(returned, Mapping) else {"rewards": returned}
    if "rewards" not in named:
        raise RewardError(f"{what} returned {sorted(named)}; expected 'rewards' among them")
    logs = {"score": named.get("scores"), **(named.get("extra_logs") or {})}
    columns = {name: _column(values, count) for name, values in logs.items() if values is not None}
    rewards = one_each(named["rewards"], count, what)
    return [(rewards[i], noted({name: column[i] for name, column in columns.items()})) for i in range(count)]


def _column(values: Any, count: int) -> list[Any]:
    """One value per answer; a single one, or another number of them, holds for all."""
    listed = values.tolist() if hasattr(values, "tolist") else values
    return list(listed) if isinstance(listed, (list, tuple)) and len(listed) == count else [listed] * count
