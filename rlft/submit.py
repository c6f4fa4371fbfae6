"""The same run as a Ray job: working directory, log and exit status."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft.config import load, local_file
from rlft.errors import ConfigError

COMMANDS = ("train", "sft", "eval")


def submit_job(run: str, address: str, overrides: Sequence[str], overwrite: bool, working_dir: Path, command: str) -> int:
    """Submit a run, print its log as it comes, and return 0 when the job succeeded, else 1.

    The job runs in a copy of `working_dir`, which must hold the run file.

    Raises:
        ConfigError: a bad run file (checked here first), or a cluster that cannot be reached.
    """
    from ray.job_submission import JobSubmissionClient

    load(run, overrides)
    if command not in COMMANDS:
        raise ConfigError(f"--command {command!r}: expected one of {', '.join(COMMANDS)}")
    file = local_file(run)
    if file is not None:
        if not file.resolve().is_relative_to(working_dir.resolve()):
            raise ConfigError(f"{file} lies outside --working-dir {working_dir}: the job would not find it")
        run = str(file.resolve().relative_to(working_dir.resolve()))
    arguments = [command, run, *(part for override in overrides for part in ("--set", override)), *["--overwrite"][: int(overwrite)]]
    entrypoint = shlex.join(["python", "-m", "rlft", *arguments])
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(working_dir), "excludes": ["runs", ".venv", ".git"]})
    except (ConnectionError, RuntimeError) as error:
        raise ConfigError(f"no Ray jobs API at {address}: {error}") from error
    print(f"job {job}: {entrypoint}")
    asyncio.run(_follow(client, job))
    status = client.get_job_info(job)
    print(f"job {job}: {status.status}" + (f": {status.message}" if status.status != "SUCCEEDED" else ""))
    return 0 if status.status == "SUCCEEDED" else 1


async def _follow(client: Any, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()
