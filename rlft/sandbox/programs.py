"""A child process with a deadline and a cap on what it prints, as an Execution."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from rlft.errors import SandboxError
from rlft.sandbox.types import Execution, Limits, Status

END_S = 2.0  # longest wait for a killed process to be gone and its output to be read
BY_SIGNAL: dict[int, Status] = {signal.SIGXCPU: "timeout", signal.SIGSYS: "denied", signal.SIGXFSZ: "output_limit"}


def check_name(name: str) -> str:
    """A file's name within the scratch folder. Raises ValueError if it leads out of it."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"file {name!r}: expected a path within the scratch folder")
    return str(path)


async def execute(
    argv: Sequence[str],
    *,
    stdin: str,
    limits: Limits,
    cwd: str = "/",
    env: Mapping[str, str] = {},
    **options: Any,
) -> Execution:
    """Run a program to its end, its wall limit or its output limit; then its process group is killed.

    Args:
        options: of the subprocess (`pass_fds`, `user`, ...).

    Raises:
        SandboxError: it cannot be started.
    """
    started = time.monotonic()
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=dict(env), start_new_session=True, **options
        )
    except OSError as error:
        raise SandboxError(f"{argv[0]} cannot be started: {error}") from error

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    room = [limits.output_bytes]
    kept = bytearray(), bytearray()
    assert process.stdin and process.stdout and process.stderr
    talk = asyncio.gather(
        _feed(process.stdin, stdin.encode(errors="replace")),
        _keep(process.stdout, kept[0], room, kill),
        _keep(process.stderr, kept[1], room, kill),
        process.wait(),
    )
    try:
        ended, _ = await asyncio.wait([talk], timeout=limits.wall_s)
        kill()
        await asyncio.wait([talk], timeout=END_S)  # what was printed before is still read
    finally:
        kill()
        talk.cancel()
    code, late = process.returncode, not ended
    if code is None:
        raise SandboxError(f"{argv[0]} does not end, though it was killed {END_S:g} s ago")
    stdout, stderr = (bytes(part).decode(errors="replace") for part in kept)
    status, error = ("output_limit", f"printed more than {limits.output_bytes} bytes") if room[0] < 0 else ending(code, stderr)
    if late:
        status, error = "timeout", f"ran into its limit of {limits.wall_s:g} s"
    return Execution(status, stdout, stderr, error=error, wall_s=time.monotonic() - started)


def ending(code: int, stderr: str) -> tuple[Status, str]:
    """Status and one line for an exit code; minus a signal, or 128 + signal as shells and bwrap report it."""
    number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else 0
    if number:
        return BY_SIGNAL.get(number, "crashed"), f"ended by signal {number}"
    last = stderr.rstrip().rpartition("\n")[2]
    if code and last.startswith("MemoryError"):
        return "oom", last
    return ("error", last or f"exit status {code}") if code else ("ok", "")


async def _keep(reader: asyncio.StreamReader, kept: bytearray, room: list[int], when_full: Callable[[], None]) -> None:
    """Keep what is printed while there is room for it, which both streams share; read on to the end without keeping more."""
    while data := await reader.read(65536):
        kept += data[: max(0, room[0])]
        room[0] -= len(data)
        if room[0] < 0:
            when_full()


async def _feed(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read its input
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        writer.close()
        await writer.wait_closed()
