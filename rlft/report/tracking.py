"""What a run leaves on disk and shows on screen."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from rlft.config import GuardsConfig, RunConfig
from rlft.data.disk import write_text
from rlft.data.sources import BadRow, describe
from rlft.errors import ConfigError, RewardError
from rlft.report.guards import Alarm, Guards
from rlft.report.metrics import STEP
from rlft.report.wandb import WandbFeed

PRINTED_STEPS = 50  # lines of a long run where there is no terminal for a live one
MARKER = "# The resolved run file of an rlft run.\n"


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run and the names of what lies in it."""

    path: Path

    @classmethod
    def create(cls, path: str | Path, config: RunConfig, overwrite: bool = False) -> RunFolder:
        """Make the folder and write the resolved run file as `config.toml`.

        Raises:
            ConfigError: it exists and is not empty; with `overwrite`, it is not the folder of an
                rlft run, and such a folder is never removed.
        """
        folder = cls(Path(path))
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            if not overwrite:
                what = f"run_dir {str(path)!r} exists and is not empty"
                raise ConfigError(f"{what}; choose another run_dir, or allow overwriting (--overwrite, overwrite=True)")
            if folder.path.is_symlink() or not _is_run(folder.config):
                raise ConfigError(f"run_dir {str(path)!r} holds no rlft run and is never overwritten; choose another, or empty it yourself")
            shutil.rmtree(folder.path)
        for part in (folder.path, folder.rollouts, folder.checkpoints, folder.plots):
            part.mkdir(parents=True, exist_ok=True)
        folder.config.write_text(MARKER + config.to_toml(), encoding="utf-8")
        return folder

    @classmethod
    def resume(cls, path: str | Path, config: RunConfig) -> RunFolder:
        """The folder of an earlier run of the same run file; its `config.toml` gets the new number of steps.

        Raises:
            ConfigError: no run there, or keys other than steps differ.
        """
        folder = cls(Path(path))
        if not _is_run(folder.config):
            raise ConfigError(f"run_dir {str(path)!r} holds no rlft run to resume; start it without --resume")
        before, now = (_flat(tomllib.loads(text)) for text in (folder.config.read_text(encoding="utf-8"), config.to_toml()))
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
        """Keep the first `rows` of `metrics.jsonl`, and the alarms up to `step`: what came after a checkpoint is done again."""
        kept = self.rows()[:rows]
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))
        if self.alarms.exists():
            alarms = [line for line in self.alarms.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= step]
            write_text(self.alarms, "".join(line + "\n" for line in alarms))
        for part in (self.quarantine, self.summary):
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


def _flat(table: Any, where: str = "") -> dict[str, Any]:
    """Every value of nested tables by its dotted name."""
    if isinstance(table, Mapping):
        return {key: value for name, part in table.items() for key, value in _flat(part, f"{where}.{name}" if where else name).items()}
    if isinstance(table, list) and table and all(isinstance(part, Mapping) for part in table):
        return {key: value for i, part in enumerate(table) for key, value in _flat(part, f"{where}[{i}]").items()}
    return {where: table}


def _is_run(config: Path) -> bool:
    return config.is_file() and config.read_text(encoding="utf-8", errors="replace").startswith(MARKER)


class Tracker:
    """Records a run: files, screen and, when asked for, wandb.

    Steps count from 1; an evaluation at step 0 comes before training. On a terminal the screen
    shows one live line, elsewhere one printed line per step, or about fifty in all.
    """

    def __init__(
        self, folder: RunFolder, config: RunConfig, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.folder, self.console = folder, console or Console()
        self._steps, self._clock, self._start = config.steps, clock, clock()
        self._first_step, self._last_step, self._trained_since = 0, 0, 0.0
        self._tokens, self._seconds, self._evaluation = 0.0, 0.0, ""
        self._guards, self._stopping, self._alarms = Guards(config.guards), set(config.guards.stop), Counter[str]()
        self._stage: dict[str, int] = {}
        self._wandb: WandbFeed | None = None
        wandb = config.tracking
        if wandb.wandb != "off":
            self._wandb = WandbFeed(folder.path, wandb.wandb, wandb.wandb_project, plain(config.model_dump()), self.warn)
        self._live, self._bar = self._start_live() if self.console.is_terminal else (None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin_stage(self, index: int, name: str, guards: GuardsConfig) -> None:
        """Rows from here on carry the stage, and its guards begin anew."""
        self._stage = {"stage": index}
        self._guards, self._stopping = Guards(guards), set(guards.stop)
        self.console.print(f"stage {index}{name and f': {name}'}", markup=False, highlight=False, soft_wrap=True)

    def replay(self, stage: int) -> None:
        """After a resume: count the alarms of before, and show the guards what the stage had recorded."""
        if self.folder.alarms.exists():
            self._alarms.update(json.loads(line)["name"] for line in self.folder.alarms.read_text(encoding="utf-8").splitlines())
        for row in self.folder.rows():
            self._last_step = row["step"]
            if row.get("stage", 0) == stage and "eval/mean" in row:
                self._guards.evaluation(row["step"], _known(row, "eval/"))
            elif row.get("stage", 0) == stage:
                self._guards.step(row["step"], _known(row))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Record the metrics of one step: one row in metrics.jsonl, one line on screen. Raises RewardError for an alarm that stops."""
        self._record(step, metrics)
        tokens, seconds = metrics.get("rollout/tokens_total", 0), metrics.get(STEP, 0.0)  # no tokens in a supervised run
        self._tokens, self._seconds, self._last_step = self._tokens + tokens, self._seconds + seconds, step
        if not self._first_step:
            self._first_step, self._trained_since = step, self._clock() - seconds
        per_step = (self._clock() - self._trained_since) / (step - self._first_step + 1)
        speed = tokens / seconds if tokens and seconds else None
        self._show(step, status_line(metrics, speed, self._evaluation, per_step * max(0, self._steps - step)))
        self._raise(self._guards.step(step, metrics))

    def evaluation(self, step: int, summary: Mapping[str, Any]) -> None:
        """Record an evaluation (evaluation.summarize, and "greedy") as a row of `eval/*` keys."""
        self._record(step, {f"eval/{name}": value for name, value in summary.items()})
        self._evaluation = evaluation_text(summary)
        self.console.print(f"step {step}/{self._steps}  {self._evaluation}", markup=False, highlight=False, soft_wrap=True)
        self._raise(self._guards.evaluation(step, summary))

    def quarantine(self, bad_rows: Sequence[BadRow]) -> None:
        """Store the rows that were left out and say which."""
        if bad_rows:
            self.folder.append_quarantine(bad_rows)
            self.warn(f"{len(bad_rows)} bad rows left out, listed in {self.folder.quarantine}:\n{describe(bad_rows)}")

    def say(self, message: str) -> None:
        """Tell something on screen, above the live line."""
        self.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def learner(self, told: Mapping[str, str]) -> None:
        """Say what the learner chose ("chosen"), and warn of what it has no room for ("tight")."""
        if "chosen" in told:
            self.say(told["chosen"])
        if "tight" in told:
            self.warn(told["tight"])

    def warn(self, message: str) -> None:
        """Say something on screen, above the live line."""
        self.console.print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json: `summary` with `steps`, `wall_s` (since the tracker began), `tokens_per_s` (sampled tokens over
        the steps' wall time), `alarms` (how many of each name) and, with wandb, `wandb_dropped` (records it did not take)."""
        measured = {
            "steps": self._last_step,
            "wall_s": self._clock() - self._start,
            "tokens_per_s": self._tokens / self._seconds if self._tokens and self._seconds else None,
            "alarms": dict(self._alarms),
        }
        self.folder.write_summary({**measured, **self.close(), **summary})

    def close(self) -> dict[str, int]:
        """End the live line and wandb. Returns what is to be told of wandb; nothing the second time."""
        if self._live:
            self._live.stop()
        feed, self._wandb = self._wandb, None
        return {"wandb_dropped": feed.finish()} if feed else {}

    def _raise(self, alarms: Sequence[Alarm]) -> None:
        """Print and store alarms. Raises RewardError where one of them is to stop the run."""
        for alarm in alarms:
            self._alarms[alarm.name] += 1
            with self.folder.alarms.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(alarm)) + "\n")
            self.warn(f"step {alarm.step}: {alarm.name}: {alarm.text}")
        stopping = [alarm for alarm in alarms if alarm.name in self._stopping]
        if stopping:
            raise RewardError(f"guards.stop: {stopping[0].name} at step {stopping[0].step}: {stopping[0].text}")

    def _start_live(self) -> tuple[Progress, TaskID]:
        counter, line = TextColumn("step {task.completed:.0f}/{task.total:.0f}"), TextColumn("{task.description}", markup=False)
        live = Progress(counter, BarColumn(20), line, console=self.console)
        bar = live.add_task("starting", total=self._steps)
        live.start()
        return live, bar

    def _record(self, step: int, metrics: Mapping[str, Any]) -> None:
        row = plain(metrics)
        self.folder.append_metrics({"step": step, **self._stage, **row})
        if self._wandb:
            self._wandb.log(step, row)

    def _show(self, step: int, line: str) -> None:
        if self._live and self._bar is not None:
            self._live.update(self._bar, completed=step, description=line)
        elif step == self._steps or step % max(1, self._steps // PRINTED_STEPS) == 0:
            self.console.print(f"step {step}/{self._steps}  {line}", markup=False, highlight=False, soft_wrap=True)


def _known(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """What a row holds, without what was not finite; the prefix of names is left out."""
    return {name.removeprefix(prefix): value for name, value in row.items() if value is not None}


def status_line(metrics: Mapping[str, Any], tokens_per_s: float | None, evaluation: str, left_s: float) -> str:
    """A step in a few words: reward (or loss, where nothing is rewarded), speed, last evaluation, time left."""
    reward = metrics.get("reward/mean")
    loss = metrics.get("loss/policy", metrics.get("loss/preference", math.nan))
    parts = [
        f"loss {loss:.3f}" if reward is None else f"reward {reward:.3f}",
        evaluation,
        "" if not tokens_per_s else f"{tokens_per_s:,.0f} tokens/s",
        f"left {timedelta(seconds=round(left_s))}",
    ]
    return "  ".join(part for part in parts if part)


def evaluation_text(summary: Mapping[str, Any]) -> str:
    """An evaluation in a few words, with its interval where it has one."""
    low, high, greedy = (summary.get(name) for name in ("low", "high", "greedy"))
    bounds = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None and math.isfinite(low) else ""
    return f"eval {summary['mean']:.3f}{bounds}" + ("" if greedy is None else f" greedy {greedy:.3f}")
