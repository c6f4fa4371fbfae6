"""The folder of one run: what lies in it, when a new run may have it, and what becomes of an earlier one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from rlft.config import RESOLVED, RunConfig
from rlft.data.disk import write_text
from rlft.data.sources import BadRow
from rlft.errors import ConfigError

MARKER = RESOLVED + "\n"
STARTER = "# Started by process {} on {}.\n"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run and the names of what lies in it."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, overwrite: bool = False) -> RunFolder:
        """Make the folder and write the resolved run file as `config.toml`. What a failed start left is used again.

        An earlier run that is overwritten is set aside until the new one has a result (`forget`), and comes back where its start
        fails (`restore`).

        Raises:
            ConfigError: as `check_free`.
        """
        folder = cls(Path(path))
        folder.check_free(config, overwrite)
        if folder._has_results():
            folder.forget()  # of the run before this one, which was killed on the way to that
            folder.path.rename(folder.replaced)
        elif folder.config.exists():
            folder._clear()
        for part in (folder.path, folder.rollouts, folder.checkpoints, folder.plots):
            part.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(MARKER + STARTER.format(os.getpid(), socket.gethostname()) + config.to_toml(), encoding="utf-8")
        return folder

    def check_free(self, config: RunConfig, overwrite: bool = False) -> None:
        """Refuse a folder that a new run cannot have; one is free where no step was recorded and no checkpoint saved.

        Raises:
            ConfigError: it holds other things than a run, which are never removed; with `overwrite`, what the run needs; or without,
                results, or a run that another process is just starting.
        """
        self.restore()
        if self.replaced.exists() and not self._has_results() and not overwrite:
            told = "move it back, or remove it"
            raise ConfigError(f"{str(self.replaced)!r} is an earlier run that was set aside by a start that did not come far; {told}")
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        here = f"run_dir {str(self.path)!r}"
        if not _is_run(self.config) or (overwrite and self.path.is_symlink()):
            raise ConfigError(f"{here} exists, holds no rlft run and is never overwritten; choose another, or empty it yourself")
        allow = "choose another run_dir, or allow overwriting (--overwrite, overwrite=True)"
        if overwrite:
            for key, needed in _needed(config):
                if needed and self.path.resolve() in Path(needed).resolve().parents:
                    raise ConfigError(f"{here} holds {key} {needed!r}, so that overwriting it would remove that; choose another run_dir")
            return
        if self._has_results():
            raise ConfigError(f"{here} holds the results of a run; {allow}; `rlft train` can go on with it (--resume, resume=True)")
        if starter := _other_starter(self.config):
            raise ConfigError(f"{here} is where {starter} starts a run; {allow}")

    def check_resumable(self) -> None:
        """Refuse a folder without a run. Raises ConfigError."""
        self.restore()
        if not _is_run(self.config):
            raise ConfigError(f"run_dir {str(self.path)!r} holds no rlft run to resume; start it without --resume")

    @property
    def replaced(self) -> Path:
        """Where an earlier run stays until the one that overwrites it has a result."""
        whole = self.path.absolute()
        return whole.with_name(f".{whole.name}.replaced")

    def forget(self) -> None:
        """Remove the earlier run that was set aside."""
        if self.replaced.exists():
            shutil.rmtree(self.replaced)

    def restore(self) -> None:
        """Bring back the earlier run that was set aside, where a start in its place left no result and is over.

        What rlft did not write there moves along. Nothing is touched where that would replace something, or is no run's folder.
        """
        if not self.replaced.exists() or self._has_results():
            return
        if self.path.exists():
            if not _is_run(self.config) or _other_starter(self.config):
                return
            theirs = [one for one in self.path.iterdir() if one not in self._written()]
            if any((self.replaced / one.name).exists() for one in theirs):
                return
            self._clear()
            for one in theirs:
                one.rename(self.replaced / one.name)
            self.path.rmdir()
        self.replaced.rename(self.path)

    def _has_results(self) -> bool:
        return bool(self.rows()) or (self.checkpoints.is_dir() and any(self.checkpoints.iterdir()))

    def _clear(self) -> None:
        """Remove what a failed start left. Anything that rlft did not write stays."""
        for part in self._written():
            if part.is_dir():
                shutil.rmtree(part)
            else:
                part.unlink(missing_ok=True)

    def _written(self) -> tuple[Path, ...]:
        """Everything that a run writes here."""
        files = (self.metrics, self.summary, self.quarantine, self.alarms, self.ledger, self.first_attempts, self.config)
        recorded = (self.path / "wandb", self.path / "tensorboard")
        return (*files, self.rollouts, self.checkpoints, self.evaluations, self.plots, *recorded)

    @classmethod
    def resume(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """The folder of an earlier run of the same run file; its `config.toml` gets the new number of steps.

        Raises:
            ConfigError: no run there, or keys other than steps differ.
        """
        folder = cls(Path(path))
        folder.check_resumable()
        before, now = (flat(tomllib.loads(text)) for text in (folder.config.read_text(encoding="utf-8"), config.to_toml()))
        free = re.compile(r"run_dir|steps|stages\[\d+\]\.steps")
        differing = sorted(key for key in before | now if before.get(key) != now.get(key) and not free.fullmatch(key))
        if differing:
            told = "".join(f"\n  {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in differing)
            raise ConfigError(f"the run in {str(path)!r} had another run file; only steps may change:{told}")
        write_text(folder.config, MARKER + config.to_toml())
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def quarantine(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def alarms(self) -> Path:
        return self.path / "alarms.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.json"

    @property
    def first_attempts(self) -> Path:
        return self.path / "first_attempts.jsonl"

    @property
    def rollouts(self) -> Path:
        return self.path / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one line to `metrics.jsonl`. It is valid JSON whatever the numbers: NaN and infinity become null."""
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(row), allow_nan=False) + "\n")

    def append_quarantine(self, bad_rows: Sequence[BadRow]) -> None:
        """Add rows that were left out to `quarantine.jsonl`."""
        with self.quarantine.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(bad)) + "\n" for bad in bad_rows)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Replace `summary.json` in one go: a reader finds the old one or the new one, never half of one."""
        write_text(self.summary, json.dumps(plain(summary), indent=2, allow_nan=False) + "\n")

    def cut(self, rows: int, step: int) -> None:
        """Keep the first `rows` of `metrics.jsonl`, and alarms and rollouts up to `step`: what came after a checkpoint is done again."""
        kept = self.rows()[:rows]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if self.alarms.exists():
            alarms = [line for line in self.alarms.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
            write_text(self.alarms, "".join(line + "\n" for line in alarms))
        later = [path for path in self.rollouts.glob("*.parquet") if int(path.stem.rpartition("-")[2]) > step]
        for part in (self.quarantine, self.summary, *later):
            part.unlink(missing_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`; a last line that a killed run left unfinished is not one."""
        text = self.metrics.read_text(encoding="utf-8") if self.metrics.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def plain(value: Any) -> Any:
    """Numbers of any library as Python's, tables and lists as JSON's, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def flat(table: Any, where: str = "") -> dict[str, Any]:
    """Every value of nested tables by its dotted name."""
    if isinstance(table, Mapping):
        return {key: value for name, part in table.items() for key, value in flat(part, f"{where}.{name}" if where else name).items()}
    if isinstance(table, list) and table and all(isinstance(part, Mapping) for part in table):
        return {key: value for i, part in enumerate(table) for key, value in flat(part, f"{where}[{i}]").items()}
    return {where: table}


def _needed(config: RunConfig) -> Iterator[tuple[str, str]]:
    """What a run reads from files, by key."""
    yield from (("model", config.model), ("critic.model", config.critic.model), ("chat_template", config.chat_template))
    yield from (("data.source", config.data.source), ("eval.data.source", config.eval.data.source))


def _other_starter(config: Path) -> str:
    """The process that wrote a run's config.toml, where it may be alive and is not this one; "" where it is gone.

    Of another machine nobody can tell here.
    """
    found = re.search(STARTER.format(r"(\d+)", "(.*)").strip(), config.read_text(encoding="utf-8"))
    if found is None:
        return ""
    pid, host = int(found[1]), found[2]
    if host == socket.gethostname():
        if pid == os.getpid() or not psutil.pid_exists(pid):
            return ""
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).create_time() > config.stat().st_mtime:  # another one, with the number of one that ended
                return ""
    return f"process {pid} of {host}"


def _is_run(config: Path) -> bool:
    return config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(MARKER)
