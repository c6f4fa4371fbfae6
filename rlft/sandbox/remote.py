"""A sandbox behind HTTP, in SandboxFusion's format (github.com/bytedance/SandboxFusion): POST /run_code."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from rlft.errors import SandboxError
from rlft.sandbox import printed
from rlft.sandbox.programs import check_name, ending
from rlft.sandbox.types import Execution, Limits, Status

MAX_REPLY = 64 << 20  # bytes
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0  # between tries
BUSY = {408, 425, 429, 500, 502, 503, 504}  # replies after which the same request is tried again


class RemoteSandbox:
    """Runs code on a server. Concurrent executions share its connections.

    Args:
        url: without /run_code.
        token: sent as `Authorization: Bearer ...`; "" for none.
        language: of the code, in the server's words.
        patience_s: longest time for one execution, tries and waiting for the server included, beyond the limits' wall time.
        compile_s: longest time that the server may compile.
        concurrency: executions under way at once; others wait here, which does not count.

    Limits that the format knows are time, memory and, on our side, output; the others are the server's own.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str = "",
        language: str = "python",
        limits: Limits | None = None,
        patience_s: float = 30.0,
        compile_s: float = 10.0,
        concurrency: int = 64,
    ) -> None:
        self._url, self._language, self._limits = url.rstrip("/"), language, limits or Limits()
        self._patience_s, self._compile_s = patience_s, compile_s
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(headers=headers, limits=httpx.Limits(max_connections=concurrency), trust_env=False)
        self._turns = asyncio.Semaphore(concurrency)

    async def run(
        self, code: str, *, stdin: str = "", files: Mapping[str, str] | None = None, limits: Limits | None = None
    ) -> Execution:
        """Run code on the server.

        Raises:
            SandboxError: the server cannot be reached, refuses, or has not answered by the deadline.
            ValueError: a file's name leads out of the working folder.
        """
        limits = limits or self._limits
        request = {
            "code": code,
            "language": self._language,
            "stdin": stdin,
            "run_timeout": limits.wall_s,
            "compile_timeout": self._compile_s,
            "memory_limit_MB": limits.memory_mb,
            "files": {check_name(name): _base64(text) for name, text in (files or {}).items()},
            "fetch_files": [],
        }
        body = json.dumps(request).encode()
        async with self._turns:
            started = time.monotonic()
            reply = await self._ask(body, started + limits.wall_s + self._patience_s)
        return _execution(reply, limits, time.monotonic() - started)

    async def call(
        self, code: str, calls: Sequence[tuple[str, Sequence[Any], Mapping[str, Any]]], *, limits: Limits | None = None
    ) -> list[Execution]:
        """Call functions that Python code defines; what they return has to be plain data. The limits hold for all calls together."""
        return printed.read(await self.run(printed.program(code, calls), limits=limits), len(calls))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, body: bytes, deadline: float) -> Mapping[str, Any]:
        """The server's reply to a request, tried again while it is busy, cannot be reached or has an error of its own."""
        pause_s, trouble = FIRST_PAUSE_S, "no answer"
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    status, data = await self._post(body, left_s)
            except (TimeoutError, httpx.TransportError) as error:
                status, data, trouble = 0, b"", f"{type(error).__name__}: {error}".rstrip(": ")
            if status == 200:
                reply = _parse(data, self._url)
                if reply.get("status") != "SandboxError":
                    return reply
                trouble = f"the server reports an error of its own: {str(reply.get('message', ''))[:500]}"
            elif status:
                trouble = f"HTTP {status}: {data[:500].decode(errors='replace')}"
                if status not in BUSY:
                    break
            wait_s = pause_s * random.uniform(0.5, 1.5)  # requests that failed together do not come back together
            await asyncio.sleep(max(0.0, min(wait_s, deadline - time.monotonic())))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise SandboxError(f"the sandbox at {self._url} ran nothing: {trouble}")

    async def _post(self, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"}
        async with self._client.stream("POST", f"{self._url}/run_code", content=body, headers=headers, timeout=timeout_s) as response:
            data = bytearray()
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MAX_REPLY:
                    raise SandboxError(f"the sandbox at {self._url} sent more than {MAX_REPLY} bytes")
        return response.status_code, bytes(data)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode(errors="surrogatepass")).decode()


def _parse(data: bytes, url: str) -> Mapping[str, Any]:
    try:
        reply = json.loads(data)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise SandboxError(f"the sandbox at {url} answers in another format: {data[:200].decode(errors='replace')}")
    return reply


def _execution(reply: Mapping[str, Any], limits: Limits, took_s: float) -> Execution:
    """A reply as an execution: the step that failed, else the run."""
    steps = [step for step in (reply.get("compile_result"), reply.get("run_result")) if isinstance(step, dict)]
    if not steps:
        raise SandboxError(f"the sandbox's reply has no run_result: {str(reply)[:200]}")
    step = next((step for step in steps if step.get("return_code") or step.get("status") != "Finished"), steps[-1])
    stdout, stderr = str(step.get("stdout") or ""), str(step.get("stderr") or "")
    status: Status
    if step.get("status") == "TimeLimitExceeded":
        status, error = "timeout", "ran into its time limit"
    elif step.get("return_code") is None:
        raise SandboxError(f"the sandbox's reply does not say how the program ended: {str(step)[:200]}")
    else:
        code = int(step["return_code"])
        status, error = ("oom", "killed, most likely for its memory") if code in (-9, 137) else ending(code, stderr)
    if len(stdout) + len(stderr) > limits.output_bytes:
        status, error = "output_limit", f"printed more than {limits.output_bytes} bytes"
        stdout, stderr = stdout[: limits.output_bytes], stderr[: limits.output_bytes]
    return Execution(status, stdout, stderr, error=error, wall_s=float(step.get("execution_time") or took_s))
