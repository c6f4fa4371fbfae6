"""Rewards behind HTTP: grades what `http_reward` sends, through the same killable processes as a run."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response

from rlft.actors.reward import RewardWorker
from rlft.errors import ConfigError, RewardError
from rlft.files import read_text
from rlft.rewards.http import is_loopback
from rlft.rewards.wire import decode_groups, encode_verdicts
from rlft.types import Group

MAX_WAITING = 256  # requests with a token at once; further ones are told to come back (503). Connections without one do not count
BACKLOG = 128
READ_S = 60.0  # longest wait for a request's body


def read_token(token_env: str, token_file: Path | None) -> str:
    """The bearer token that a variable or a file holds; "" where neither is named. Raises ConfigError."""
    if token_env and token_file:
        raise ConfigError("give --token-env or --token-file, not both")
    if token_env:
        token, where = os.environ.get(token_env, ""), f"the environment variable {token_env!r}"
    elif token_file:
        if not token_file.is_file():
            raise ConfigError(f"--token-file {token_file}: no such file")
        token, where = read_text(token_file, "--token-file").strip(), f"the file {token_file}"
    else:
        return ""
    if not token or not token.isascii():
        raise ConfigError(f"{where} holds no token of ASCII characters")
    return token


def listen(host: str, port: int, token: str) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        ConfigError: others could reach it without a token, or the address cannot be had.
    """
    if not token and not is_loopback(host):
        raise ConfigError(f"--host {host}: whoever reaches it could have rewards computed; set --token-env or --token-file")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error


def make_app(worker: RewardWorker, token: str, max_bytes: int) -> FastAPI:
    """POST /grade and GET /health. Everything but /health asks for the token, if there is one."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    under_way: set[Request] = set()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/grade")
    async def grade(request: Request) -> Response:
        if token and not _is_allowed(request, token):
            return _refusal(401, "a bearer token is needed, and it has to be the right one", {"WWW-Authenticate": "Bearer"})
        if len(under_way) >= MAX_WAITING:
            return _refusal(503, f"{MAX_WAITING} requests are under way; come back", {"Retry-After": "1"})
        under_way.add(request)
        try:
            return await _graded(request, worker, max_bytes)
        finally:
            under_way.remove(request)

    return app


async def serve(
    reward: Any,
    listener: socket.socket,
    token: str,
    processes: int,
    timeout_s: float,
    max_bytes: int,
    ready: Callable[[str], None] = print,
    env: Sequence[str] = (),
) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the address once the rewards are loaded.

    Raises:
        RewardError: the rewards cannot be loaded.
    """
    import uvicorn

    from rlft.runs.connections import HEADER_S, Impatient

    worker = RewardWorker(reward, processes, timeout_s, env)
    try:
        await worker.start()
        app = make_app(worker, token, max_bytes)
        config = uvicorn.Config(app, http=Impatient, log_level="warning", timeout_keep_alive=int(HEADER_S), server_header=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        host, port = listener.getsockname()[:2]
        ready(f"http://{f'[{host}]' if ':' in host else host}:{port}/grade")
        await serving
    finally:
        await worker.close()
        listener.close()


async def _graded(request: Request, worker: RewardWorker, max_bytes: int) -> Response:
    try:
        async with asyncio.timeout(READ_S):
            body = await _read(request, max_bytes)
    except TimeoutError:
        return _refusal(408, f"the request did not arrive within {READ_S:g} s")
    if body is None:
        return _refusal(413, f"the request is larger than {max_bytes} bytes; send fewer groups, or raise --max-mb")
    try:
        groups = [_unsaid(group) for group in decode_groups(json.loads(body, parse_constant=_no_number))]
    except (ValueError, RecursionError) as error:
        return _refusal(400, f"the request is not JSON: {error}")
    except RewardError as error:
        return _refusal(422, str(error))
    try:
        return Response(encode_verdicts(await worker.grade(groups)), media_type="application/json")
    except RewardError as error:
        return _refusal(500, str(error))


def _is_allowed(request: Request, token: str) -> bool:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"


async def _read(request: Request, max_bytes: int) -> bytes | None:
    """The body, or None once it turns out larger than `max_bytes`."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            return None
    return bytes(body)


def _unsaid(group: Group) -> Group:
    """Without the feedback of other rewards: the answer's is this reward's alone."""
    return replace(group, trajectories=tuple(replace(trajectory, feedback="") for trajectory in group.trajectories))


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _refusal(status: int, why: str, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps({"detail": why}), status, headers, media_type="application/json")
