"""A reward behind HTTP, as one reward of a run: the client."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from rlft.errors import ConfigError, RewardError
from rlft.rewards.grader import defaults
from rlft.rewards.wire import encode_groups, verdicts_of
from rlft.types import Group

MAX_ANSWER = 2**25  # bytes of an answer
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 8.0  # between tries
TRY_AGAIN = (408, 429)  # and every server error


@defaults(timeout_s=150.0)
class HttpReward:
    """A reward served by `rlft serve-reward`, or by anything that speaks its format.

    Args:
        url: of the endpoint, such as http://host:8010/grade.
        token_env: environment variable of the reward workers that holds the bearer token; "": none is sent.
        request_timeout_s: of one try.
        retries: further tries where the server cannot be reached, is busy or answers with a server error.
        tokens: send sampled ids and log-probabilities too.
    """

    def __init__(
        self, *, url: str, token_env: str = "", request_timeout_s: float = 30.0, retries: int = 3, tokens: bool = False
    ) -> None:
        check_url(url, "http_reward")
        if request_timeout_s <= 0 or retries < 0:
            raise ConfigError("http_reward: expected request_timeout_s above 0 and retries of 0 or more")
        self.url, self.token_env, self.tokens = url, token_env, tokens
        self.request_timeout_s, self.retries = request_timeout_s, retries
        self._headers: dict[str, str] = {}
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Read the token. Raises RewardError where the variable is not set."""
        if self.token_env:
            token = os.environ.get(self.token_env, "")
            if not token:
                raise RewardError(f"http_reward: the environment variable {self.token_env!r} is not set where the rewards run")
            self._headers = {"Authorization": f"Bearer {token}"}
        self._client = client(self.request_timeout_s)

    async def score(self, group: Group) -> list[Any]:
        """(value, feedback) per trajectory, or the RewardError that says why there is none. Raises RewardError."""
        assert self._client is not None, "start the scorer first"
        body = encode_groups([group], self.tokens)
        returned = await post(self._client, self.url, body, self._headers, self.request_timeout_s, self.retries)
        return verdicts_of(returned, [len(group.trajectories)], self.url)[0]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


def client(timeout_s: float) -> httpx.AsyncClient:
    """A client that reads no answer of more than MAX_ANSWER bytes, and none that is compressed: it could unfold to any size."""
    return httpx.AsyncClient(timeout=timeout_s, headers={"Accept-Encoding": "identity"}, event_hooks={"response": [_capped]})


class _Capped(httpx.AsyncByteStream):
    """An answer's body. Raises RewardError once it is larger than MAX_ANSWER."""

    def __init__(self, body: httpx.AsyncByteStream, url: str) -> None:
        self._body, self._url = body, url

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for part in self._body:
            size += len(part)
            if size > MAX_ANSWER:
                raise RewardError(f"{self._url}: an answer of more than {MAX_ANSWER} bytes")
            yield part

    async def aclose(self) -> None:
        await self._body.aclose()


async def _capped(response: httpx.Response) -> None:
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise RewardError(f"{response.url}: an answer compressed as {encoding[:40]!r}, which was not asked for")
    assert isinstance(response.stream, httpx.AsyncByteStream)
    response.stream = _Capped(response.stream, str(response.url))


def check_url(url: str, who: str) -> None:
    """Raises ConfigError where `url` is no http address, or carries a password that would end up in logs."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{who}: url {url!r}; expected http://host:port/path")
    if parts.username or parts.password:
        raise ConfigError(f"{who}: the url holds a password; name the environment variable that holds the token instead")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def post(client: httpx.AsyncClient, url: str, body: bytes, headers: Mapping[str, str], timeout_s: float, retries: int) -> Any:
    """The JSON that `url` answers with. Tries again, after growing pauses, what may go better then.

    Raises:
        RewardError: it was refused, or did not succeed with the last try.
    """
    headers = {"Content-Type": "application/json", **headers}
    problem = ""
    for number in range(retries + 1):
        if number:
            await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (number - 1)))
        try:
            async with asyncio.timeout(timeout_s):
                response = await client.post(url, content=body, headers=headers)
        except (httpx.TransportError, TimeoutError) as error:
            problem = f"{type(error).__name__}: {error}" if str(error) else f"no answer within {timeout_s:g} s"
            continue
        if response.is_success:
            return _parsed(response.content, url)
        problem = f"status {response.status_code}: {response.text[:300]}"
        if response.status_code < 500 and response.status_code not in TRY_AGAIN:
            break
    raise RewardError(f"{url}: {problem}")


def _parsed(body: bytes, url: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RewardError(f"{url}: the answer is not JSON: {error}") from None
