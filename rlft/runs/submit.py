"""The same run as a Ray job: what it is sent, its log and its exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from rlft.config import RunConfig, load
from rlft.errors import ConfigError, visible
from rlft.files import local_file
from rlft.hub import looks_local
from rlft.runs.applies import Command
from rlft.runs.first import look_from_afar
from rlft.runs.joining import CONNECT_S, TOKEN_HINT, is_cluster
from rlft.runs.stopping import note

COMMANDS: Sequence[Command] = ("train", "sft", "dpo", "train-rm", "eval")
NOT_SENT = ("/runs", ".venv", ".git", "__pycache__")  # as in a .gitignore
PATHS = ("model", "source", "chat_template")  # keys that may name a file or folder
MAX_MB = 500  # that Ray takes, nearly
# Loggers of Ray that tell of packages, uploads and closed connections.
CHATTY = ("ray._private.runtime_env.packaging", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
LARGEST = 3  # files that are named when they are too many bytes


@dataclass(frozen=True)
class Job:
    """What a job is to run, and what happens here meanwhile."""

    overrides: Sequence[str] = ()
    overwrite: bool = False
    resume: bool = False
    working_dir: Path = Path()
    command: str = "train"
    wait: bool = True


def submit_job(run: str, address: str | None, job: Job) -> int:
    """Submit a run and, unless it is not to be waited for, print its log as it comes. 0 when the job succeeded (or was taken), else 1.

    The job runs in a copy of its working directory, which must hold the run file, with the `python` that is
    first on the cluster's path. A cluster that asks for a token gets Ray's.

    Args:
        address: of the cluster's dashboard; None: RAY_API_SERVER_ADDRESS.

    Raises:
        ConfigError, DataError: a bad run file, or one that names what is not sent (checked here, before anybody is asked).
        ConfigError: a cluster that cannot be reached or refuses the job.
    """
    config = load(run, job.overrides)
    entrypoint = shlex.join(["python", "-m", "rlft", *_arguments(run, job)])
    address = _dashboard(address)
    check_places(config, job.working_dir)
    with chdir(job.working_dir):
        look_from_afar(config, _command(job.command), job.overwrite, job.resume)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray's client heeds the environment before what it is given
    mode = ""  # that the user's own commands need as well
    if _wants_token(address) and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"], mode = "token", "RAY_AUTH_MODE=token "  # Ray reads it when imported
    sent = sent_files(job.working_dir)
    check_sent(config, job.working_dir, sent)
    print(f"sending {len(sent)} files of {job.working_dir.resolve()}, {sum(sent.values()) / 2**20:.1f} MiB")
    note(say=f"the job was being sent; `{mode}ray job list --address {address}` tells whether it was taken")
    client, name = _submit(address, entrypoint, job.working_dir)
    look, end = (f"{mode}ray job {verb} {name} --address {address}" for verb in ("logs --follow", "stop"))
    note(say=f"job {name} goes on; look at it with `{look}`, stop it with `{end}`")
    print(f"job {name}: {entrypoint}", flush=True)
    if not job.wait:
        print(f"look at it with `{look}`, stop it with `{end}`")
        return 0
    try:
        asyncio.run(_follow(client, name))
        status = client.get_job_info(name)
    except (OSError, RuntimeError, _http_error()) as error:  # a ConnectionError is an OSError
        print(f"lost the connection to {address} ({visible(str(error))}); job {name} goes on without it: `{look}`", file=sys.stderr)
        return 1
    print(f"job {name}: {status.status}" + (f": {visible(status.message)}" if status.status != "SUCCEEDED" else ""))
    return 0 if status.status == "SUCCEEDED" else 1


def check_sent(config: RunConfig, working_dir: Path, sent: Mapping[Path, int]) -> None:
    """Refuse a job that would not find its files, or would lose its results.

    Args:
        sent: bytes of every file that goes along, by its path in the working directory.

    Raises:
        ConfigError: what is not there for the job, and what to do.
    """
    check_places(config, working_dir)
    for key, value in _paths(config.model_dump()):
        path = Path(os.path.normpath(value))
        if not value or path.is_absolute():
            continue  # as all nodes see it
        there = (working_dir / path).exists()
        goes = any(file == path or path in file.parents for file in sent)
        if (there or looks_local(value)) and not goes:
            why = "lies there, but is left out (runs/, .venv/, .git/ and what .gitignore lists)" if there else "does not lie there"
            raise _not_sent(key, value, working_dir, why)
    if (total := sum(sent.values())) > MAX_MB * 2**20:
        largest = sorted(sent, key=lambda file: sent[file], reverse=True)[:LARGEST]
        listed = ", ".join(f"{file} ({sent[file] / 2**20:.0f} MiB)" for file in largest)
        raise ConfigError(
            f"{working_dir.resolve()} has {total / 2**20:.0f} MiB to send, and Ray takes {MAX_MB}; the largest: {listed}; "
            "list what the job does not need in .rayignore, or name it by an absolute path that all nodes see"
        )


def check_places(config: RunConfig, working_dir: Path) -> None:
    """What of `check_sent` needs no list of what goes along. Raises ConfigError."""
    if not Path(config.run_dir).is_absolute():
        raise ConfigError(
            f"run_dir {config.run_dir!r} would lie in the job's own copy of the working directory, which Ray removes; "
            "give an absolute path that all nodes see: --set run_dir=/shared/run"
        )
    for key, value in _paths(config.model_dump()):
        if value and looks_local(value) and not Path(value).is_absolute() and not (working_dir / value).exists():
            raise _not_sent(key, value, working_dir, "does not lie there")


def _not_sent(key: str, value: str, working_dir: Path, why: str) -> ConfigError:
    why = "lies outside" if Path(os.path.normpath(value)).parts[0] == ".." else why
    return ConfigError(
        f"{key} {value!r} is not sent: of {working_dir.resolve()} the job gets a copy, and it {why}; "
        "give a Hub name, or an absolute path that all nodes see"
    )


def sent_files(working_dir: Path) -> dict[Path, int]:
    """Bytes of every file that Ray would send of a folder, by its path there: by Ray's own walk, ignore files included."""
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    top, found = working_dir.absolute(), {}

    def take(path: Path) -> None:
        if path.is_file():
            found[path.relative_to(top)] = path.stat().st_size

    gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(top, [_get_excludes(top, list(NOT_SENT))], take, include_gitignore=gitignore)
    return found


def _arguments(run: str, job: Job) -> list[str]:
    """Of the job's command line."""
    if job.resume and _command(job.command) != "train":
        raise ConfigError(f"--resume goes on with a run of `rlft train`, not of `rlft {job.command}`")
    flags = [*["--overwrite"][: job.overwrite], *["--resume"][: job.resume]]
    overrides = [part for override in job.overrides for part in ("--set", override)]
    return [_command(job.command), _inside(job.working_dir, run), *overrides, *flags]


def _command(name: str) -> Command:
    for known in COMMANDS:
        if known == name:
            return known
    raise ConfigError(f"--command {name!r}: expected one of {', '.join(COMMANDS)}")


def _inside(working_dir: Path, run: str) -> str:
    """The run file as the job names it: relative to its working directory. A recipe stays as it is."""
    file = local_file(run)
    if file is None:
        return run
    file, top = file.resolve(), working_dir.resolve()
    if not file.is_relative_to(top):
        raise ConfigError(f"{file} lies outside --working-dir {top}: the job would not find it")
    path = file.relative_to(top)
    if f"/{path.parts[0]}" in NOT_SENT or path.parts[0] in NOT_SENT:
        raise ConfigError(f"{file}: the folder {path.parts[0]!r} is not sent with the job; move the run file out of it")
    return str(path)


def _paths(table: Any, where: str = "", last: str = "") -> Iterator[tuple[str, str]]:
    """Every value that may name a file or folder, with its dotted key."""
    if isinstance(table, Mapping):
        for key, value in table.items():
            yield from _paths(value, f"{where}.{key}" if where else str(key), str(key))
    elif isinstance(table, list | tuple):
        for i, value in enumerate(table):
            yield from _paths(value, f"{where}[{i}]", last)
    elif isinstance(table, str) and last in PATHS and ":" not in table:
        yield where, table


def _dashboard(address: str | None) -> str:
    """The URL of the jobs API. Raises ConfigError for what is none."""
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or ""
    if not address:
        raise ConfigError("no cluster to submit to: give its dashboard, --address http://head:8265, or set RAY_API_SERVER_ADDRESS")
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} takes runs that join: `rlft train FILE --address {address}`; a job goes to the dashboard, http://head:8265"
        )
    return (address if "://" in address else f"http://{address}").rstrip("/")


def _wants_token(address: str) -> bool:
    """Ask without one, so that no token goes where none is wanted."""
    try:
        urlopen(f"{address}/api/version", timeout=CONNECT_S).close()
    except HTTPError as error:
        return error.code == 401
    except (OSError, ValueError, HTTPException) as error:
        place = address.partition("://")[2]
        if is_cluster(place):
            raise ConfigError(
                f"{place} is the cluster's own port, where runs join: `rlft train FILE --address {place}`; "
                "a job goes to the dashboard, such as http://head:8265"
            ) from error
        raise ConfigError(f"no Ray jobs API at {address}: {error}; give the cluster's dashboard, such as http://head:8265") from error
    return False


def _submit(address: str, entrypoint: str, working_dir: Path) -> tuple[Any, str]:
    """Ray's client, and the job's name."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        return client, client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": str(working_dir), "excludes": list(NOT_SENT)})
    except AuthenticationError as error:
        hint = f"{TOKEN_HINT}, and leave RAY_AUTH_MODE unset or 'token'"
        raise ConfigError(f"{address} asks for a token, and it was missing or wrong: {hint}") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{address} does not take the job: {error}") from error


async def _follow(client: Any, job: str) -> None:
    """Print the job's log until it ends. Raises RuntimeError or an HTTP client's error where the connection is lost before."""
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()
    if not client.get_job_info(job).status.is_terminal():
        raise RuntimeError("the log ended before the job")


def _http_error() -> type[Exception]:
    import aiohttp

    return aiohttp.ClientError
