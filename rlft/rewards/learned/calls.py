"""Asking models: what answers a question, an OpenAI-compatible service that does, and a caller that keeps answers and counts them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlft.errors import ConfigError, RewardError
from rlft.types import Message

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_IN_MEMORY = 20_000  # replies kept without a file


@dataclass(frozen=True)
class Reply:
    """What a model wrote. `finished`: it ended by itself, not at its limit. `tokens`: prompt and answer, None if nobody counted."""

    text: str
    finished: bool
    tokens: int | None


# (messages, temperature, max_tokens, seed) -> Reply; raises RewardError where no answer can be had.
Complete = Callable[[Sequence[Message], float, int, int], Awaitable[Reply]]


class Endpoint:
    """One model of an OpenAI-compatible service. Transient failures are tried again by the client, with growing pauses.

    Args:
        key_env: environment variable with the key; "" for a service that asks for none.
        retries: of a request that met no server, a busy one, or one that failed.
        timeout_s: of one attempt.
    """

    def __init__(self, model: str, base_url: str, key_env: str = "", retries: int = 3, timeout_s: float = 120.0) -> None:
        self.model, self.base_url, self.key_env, self.retries, self.timeout_s = model, base_url, key_env, retries, timeout_s
        self._client: AsyncOpenAI | None = None

    async def __call__(self, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """Raises RewardError when the service refuses, fails or cannot be reached."""
        from openai import OpenAIError

        seeded: dict[str, Any] = {"seed": seed} if temperature > 0 else {}
        try:
            done = await self.connect().chat.completions.create(
                model=self.model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=temperature,
                max_tokens=max_tokens,
                **seeded,
            )
        except OpenAIError as error:
            raise RewardError(
                f"judge {self.model!r} at {self.base_url}: {type(error).__name__}: {error}; "
                f"after {self.retries} retries of {self.timeout_s:g} s; check base_url, model, key_env and the service"
            ) from error
        if not done.choices:
            raise RewardError(f"judge {self.model!r} at {self.base_url}: a reply without choices")
        choice = done.choices[0]
        return Reply(choice.message.content or "", choice.finish_reason == "stop", done.usage.total_tokens if done.usage else None)

    def connect(self) -> AsyncOpenAI:
        """The client, made at the first call. Raises ConfigError where the key is missing."""
        if self._client is None:
            from openai import AsyncOpenAI

            key = os.environ.get(self.key_env, "") if self.key_env else "none"
            if not key:
                raise ConfigError(f"judge: the environment variable {self.key_env!r} (key_env) is not set where the reward worker runs")
            self._client = AsyncOpenAI(api_key=key, base_url=self.base_url, max_retries=self.retries, timeout=self.timeout_s)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()


class Replies:
    """Replies by request, in a SQLite file that several processes may share, or in memory, where the oldest make room."""

    def __init__(self, file: str = "") -> None:
        self._in_memory = not file
        try:
            self._db = sqlite3.connect(file or ":memory:", timeout=30, isolation_level=None, check_same_thread=False)
            self._db.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, text TEXT, finished INTEGER)")
        except sqlite3.Error as error:
            raise ConfigError(f"judge: cache {file!r}: {error}; name a file in a folder that exists") from error

    def get(self, key: str) -> Reply | None:
        """The reply of an earlier request, which cost nothing now."""
        row = self._db.execute("SELECT text, finished FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(row[0], bool(row[1]), 0) if row else None

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply; the first of a key stays."""
        self._db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?)", (key, reply.text, reply.finished))
        if self._in_memory:
            self._db.execute("DELETE FROM replies WHERE rowid <= (SELECT max(rowid) FROM replies) - ?", (MAX_IN_MEMORY,))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


class Caller:
    """Puts requests to models: so many at once, each only once, within a budget. Lives on one event loop.

    Args:
        models: name -> what completes for it.
        concurrency: requests in flight.
        kept: where replies are kept; None where the same request may deserve another answer later.
        budget_calls, budget_tokens: of the run, 0 for no limit. Kept replies cost nothing.
    """

    def __init__(
        self, models: Mapping[str, Complete], concurrency: int, kept: Replies | None, budget_calls: int = 0, budget_tokens: int = 0
    ) -> None:
        self.models, self.kept, self.budget_calls, self.budget_tokens = models, kept, budget_calls, budget_tokens
        self.num_calls = self.num_tokens = self.num_kept = 0
        self._room = asyncio.Semaphore(concurrency)
        self._asking: dict[str, asyncio.Task[Reply]] = {}

    async def ask(self, model: str, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        """A reply, from the model or from an equal request before or beside. Raises RewardError."""
        request = [model, list(messages), temperature, max_tokens, seed]
        key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        if self.kept and (known := self.kept.get(key)):
            self.num_kept += 1
            return known
        if key not in self._asking:
            task = self._asking[key] = asyncio.create_task(self._call(key, model, messages, temperature, max_tokens, seed))
            task.add_done_callback(lambda done: self._forget(key, done))
        # Shielded: who gives up waiting takes nothing from those who asked the same.
        return await asyncio.shield(self._asking[key])

    async def close(self) -> None:
        """Give up what is in flight."""
        asking = list(self._asking.values())
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        if self.kept:
            self.kept.close()

    async def _call(self, key: str, model: str, messages: Sequence[Message], temperature: float, max_tokens: int, seed: int) -> Reply:
        async with self._room:
            for what, spent, budget in (("calls", self.num_calls, self.budget_calls), ("tokens", self.num_tokens, self.budget_tokens)):
                if budget and spent >= budget:
                    raise RewardError(f"judge: its budget of {budget} {what} is spent; raise budget_{what}, or ask less (opponents, votes)")
            self.num_calls += 1
            reply = await self.models[model](messages, temperature, max_tokens, seed)
        if self.budget_tokens and reply.tokens is None:
            raise RewardError(f"judge {model!r}: the service does not report its tokens, so budget_tokens cannot hold; use budget_calls")
        self.num_tokens += reply.tokens or 0
        if self.kept:
            self.kept.put(key, reply)
        return reply

    def _forget(self, key: str, done: asyncio.Task[Reply]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # looked at, also where everybody who asked has left

