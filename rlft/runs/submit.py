"""The same run as a Ray job: working directory, log and exit status."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from rlft.config import load, local_file
from rlft.errors import ConfigError

COMMANDS = ("train", "sft", "dpo", "train-rm", "eval")
NOT_SENT = ("runs", ".venv", ".git")  # folders at the top of the working directory
CONNECT_S = 30.0


def submit_job(run: str, address: str, overrides: Sequence[str], overwrite: bool, working_dir: Path, command: str) -> int:
    """Submit a run, print its log as it comes, and return 0 when the job succeeded, else 1.

    The job runs in a copy of `working_dir`, which must hold the run file, with the `python` that is
    first on the cluster's path. A cluster that asks for a token gets Ray's (RAY_AUTH_TOKEN, or ~/.ray/auth_token).

    Raises:
        ConfigError: a bad run file (checked here first), or a cluster that cannot be reached or refuses the job.
    """
    load(run, overrides)
    if command not in COMMANDS:
        raise ConfigError(f"--command {command!r}: expected one of {', '.join(COMMANDS)}")
    arguments = [command, _inside(working_dir, run), *(part for override in overrides for part in ("--set", override))]
    entrypoint = shlex.join(["python", "-m", "rlft", *arguments, *["--overwrite"][: int(overwrite)]])
    address = address if "://" in address else f"http://{address}"
    if _wants_token(address):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it when imported
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        runtime_env = {"working_dir": str(working_dir), "excludes": [f"/{folder}" for folder in NOT_SENT]}
        job = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
    except AuthenticationError as error:
        hint = "put the cluster's token in RAY_AUTH_TOKEN or ~/.ray/auth_token, and leave RAY_AUTH_MODE unset or 'token'"
        raise ConfigError(f"{address} asks for a token, and it was missing or wrong: {hint}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{address} does not take the job: {error}") from error
    print(f"job {job}: {entrypoint}")
    asyncio.run(_follow(client, job))
    status = client.get_job_info(job)
    print(f"job {job}: {status.status}" + (f": {status.message}" if status.status != "SUCCEEDED" else ""))
    return 0 if status.status == "SUCCEEDED" else 1


def _inside(working_dir: Path, run: str) -> str:
    """The run file as the job names it: relative to its working directory. A recipe stays as it is."""
    file = local_file(run)
    if file is None:
        return run
    file, top = file.resolve(), working_dir.resolve()
    if not file.is_relative_to(top):
        raise ConfigError(f"{file} lies outside --working-dir {top}: the job would not find it")
    path = file.relative_to(top)
    if path.parts[0] in NOT_SENT:
        raise ConfigError(f"{file}: the folder {path.parts[0]!r} is not sent with the job; move the run file out of it")
    return str(path)


def _wants_token(address: str) -> bool:
    """Ask without one, so that no token goes where none is wanted."""
    try:
        urlopen(f"{address.rstrip('/')}/api/version", timeout=CONNECT_S).close()
    except HTTPError as error:
        return error.code == 401
    except (OSError, ValueError, HTTPException) as error:
        raise ConfigError(f"no Ray jobs API at {address}: {error}; give the cluster's dashboard, such as http://head:8265") from error
    return False


async def _follow(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()
