"""What a run leaves on disk and shows on screen."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from rlft.config import GuardsConfig, RunConfig
from rlft.data.sources import BadRow, describe
from rlft.errors import RewardError
from rlft.report.callbacks import Callback, check, samples_of, tell
from rlft.report.folder import RunFolder, plain
from rlft.report.guards import NO_SIGNAL, Alarm, Guards
from rlft.report.lines import StepLine, evaluation_text, step_parts
from rlft.report.metrics import STEP
from rlft.report.screen import Phase, Screen
from rlft.report.tensorboard import TensorBoard
from rlft.report.wandb import WandbFeed
from rlft.types import Example, Sampled

REFRESH_S, REFRESH_SHARE = 30.0, 0.02  # plots and summary of a run that goes on: how often, and for how much of its time at most
PRINTED_STEPS = 50  # lines of a long run where there is no terminal for a live one


class Tracker:
    """Records a run: files, screen, callbacks and, when asked for, wandb and TensorBoard.

    Steps count from 1; an evaluation at step 0 comes before training. On a terminal the screen
    shows one live line, elsewhere one printed line per step, or about fifty in all.

    Args:
        screen: that the run has used so far; its beginning is the run's. None: a new one on `console` with `clock`.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: RunConfig,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        screen: Screen | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._own = check(callbacks)
        self.folder, self.screen = folder, screen or Screen(console, clock)
        self.console = self.screen.console
        self._steps, self._clock = config.steps, self.screen.clock
        self._first_step, self._last_step, self._trained_since = 0, 0, 0.0
        self._tokens, self._seconds, self._evaluation = 0.0, 0.0, None
        self._startup: dict[str, float] = {}
        self._guards, self._stopping, self._alarms = Guards(config.guards), set(config.guards.stop), Counter[str]()
        self._stage: dict[str, int] = {}
        self._refreshed = clock()
        self._wandb: WandbFeed | None = None
        if config.tracking.wandb != "off":
            self._wandb = WandbFeed(folder.path, config.tracking, plain(config.model_dump()), self.warn)
            self._own.insert(0, self._wandb)
        if config.tracking.tensorboard:
            self._own.append(TensorBoard(folder.path / "tensorboard"))
        tell(self._own, "on_begin", plain(config.model_dump()), folder.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is not None:
            self.folder.restore()

    def begin_stage(self, index: int, name: str, guards: GuardsConfig) -> None:
        """Rows from here on carry the stage, and its guards begin anew."""
        self._stage = {"stage": index}
        self._guards, self._stopping = Guards(guards), set(guards.stop)
        self.say(f"stage {index}{name and f': {name}'}")

    def phase(self, name: str, tell: bool = True) -> AbstractContextManager[Phase]:
        """Show what goes on while a block runs (`Screen.phase`)."""
        return self.screen.phase(name, tell)

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

    def log(self, step: int, metrics: Mapping[str, Any], examples: Sequence[Example] = ()) -> None:
        """Record the metrics of one step: one row in metrics.jsonl, one line on screen. Raises RewardError for an alarm that stops.

        Args:
            examples: a few of the step's answers, told where the step teaches nothing.
        """
        row = self._record(step, metrics)
        tokens, seconds = metrics.get("rollout/tokens_total", 0), metrics.get(STEP, 0.0)  # no tokens in a supervised run
        self._tokens, self._seconds, self._last_step = self._tokens + tokens, self._seconds + seconds, step
        if not self._first_step:
            self._first_step, self._trained_since, per_step = step, self._clock(), seconds
            self._startup = {**self.screen.seconds, "until the first step": self._clock() - seconds - self.screen.began}
        else:  # what the first step alone had to load is not expected of those to come
            per_step = (self._clock() - self._trained_since) / (step - self._first_step)
        parts = step_parts(metrics, tokens / seconds if tokens and seconds else None, self._evaluation)
        told = step == self._steps or step % max(1, self._steps // PRINTED_STEPS) == 0
        self.screen.show(StepLine(step, self._steps, parts, per_step * max(0, self._steps - step)), told)
        tell(self._own, "on_log", step, row)
        self._raise(self._guards.step(step, metrics), examples)
        self._refresh()

    def evaluation(self, step: int, summary: Mapping[str, Any], sampled: Sequence[Sampled] = ()) -> None:
        """Record an evaluation (evaluation.summarize, and "greedy") as a row of `eval/*` keys; `sampled` is what was said."""
        self.measured(step, summary, sampled)
        self._evaluation = dict(summary)
        self.say(f"step {step}/{self._steps}  {evaluation_text(summary)}")
        self._raise(self._guards.evaluation(step, summary))
        self._refresh()

    def saved(self, step: int, checkpoint: Path) -> None:
        """Note that a checkpoint is complete."""
        tell(self._own, "on_save", step, checkpoint)
        self._refresh()

    def measured(self, step: int, summary: Mapping[str, Any], sampled: Sequence[Sampled] = ()) -> None:
        """Record an evaluation as a row, without a word on screen."""
        row = self._record(step, {f"eval/{name}": value for name, value in summary.items()})
        tell(self._own, "on_evaluate", step, row, samples_of(sampled))

    def quarantine(self, bad_rows: Sequence[BadRow]) -> None:
        """Store the rows that were left out and say which."""
        if bad_rows:
            self.folder.append_quarantine(bad_rows)
            self.warn(f"{len(bad_rows)} bad rows left out, listed in {self.folder.quarantine}:\n{describe(bad_rows)}")

    def say(self, message: str) -> None:
        """Tell something on screen, above the live line."""
        self.screen.say(message)

    def learner(self, told: Mapping[str, str]) -> None:
        """Say what the learner chose ("chosen"), and warn of what it has no room for ("tight")."""
        if "chosen" in told:
            self.say(told["chosen"])
        if "tight" in told:
            self.warn(told["tight"])

    def warn(self, message: str) -> None:
        """Say something on screen, above the live line."""
        self.screen.say(f"warning: {message}", style="yellow")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Draw the plots and write summary.json: `summary` with `steps`, `wall_s` (since the screen began), `startup` (seconds of
        what came before the first step), `tokens_per_s` (sampled tokens over the steps' wall time), `alarms` (how many of each name)
        and, with wandb, `wandb_dropped` (records it did not take)."""
        final = {**self._measured(), **summary}
        with self.phase("plots", tell=False):
            self._draw()
        if self._wandb:
            self._wandb.on_end(plain(final))
        final = plain({**self._measured(), **self._end_wandb(), **final})
        self.folder.write_summary(final)
        tell([callback for callback in self._own if not isinstance(callback, WandbFeed)], "on_end", final)
        self.close()

    def _measured(self) -> dict[str, Any]:
        return {
            "steps": self._last_step,
            "wall_s": self._clock() - self.screen.began,
            "startup": self._startup,
            "tokens_per_s": self._tokens / self._seconds if self._tokens and self._seconds else None,
            "alarms": dict(self._alarms),
        }

    def _refresh(self) -> None:
        """Plots and summary.json of the run so far, now and then."""
        if self._clock() - self._refreshed < REFRESH_S:
            return
        from rlft.report.results import summarize_run

        began = self._clock()
        self._draw()
        summary = {key: value for key, value in summarize_run(self.folder, self._last_step).items() if key != "checkpoint"}
        self.folder.write_summary({**self._measured(), **summary, "running": True})
        took = self._clock() - began
        self._refreshed = self._clock() + max(0.0, took / REFRESH_SHARE - REFRESH_S)

    def _draw(self) -> None:
        from rlft.report.plots import draw  # matplotlib takes a second, which the start of a run need not wait for

        draw(self.folder.rows(), self.folder.plots)

    def close(self) -> None:
        """End the live line, callbacks and wandb; nothing the second time."""
        self.screen.close()
        own, self._own = self._own, []
        for callback in own:
            try:
                callback.close()
            except Exception as error:
                self.warn(f"callback {type(callback).__name__}.close raised {type(error).__name__}: {error}")
        self._end_wandb()

    def _end_wandb(self) -> dict[str, int]:
        """What is to be told of wandb; nothing the second time."""
        feed, self._wandb = self._wandb, None
        if feed is None:
            return {}
        with self.phase("wandb", tell=False):
            return {"wandb_dropped": feed.finish()}

    def _raise(self, alarms: Sequence[Alarm], examples: Sequence[Example] = ()) -> None:
        """Print and store alarms. Raises RewardError where one of them is to stop the run."""
        for alarm in alarms:
            if alarm.name == NO_SIGNAL and examples:
                alarm = replace(alarm, text="\n".join([f"{alarm.text}; for example", *(f"  {example.told()}" for example in examples)]))
            self._alarms[alarm.name] += 1
            with self.folder.alarms.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(alarm)) + "\n")
            self.warn(f"step {alarm.step}: {alarm.name}: {alarm.text}")
            tell(self._own, "on_alarm", alarm.step, alarm.name, alarm.text)
        stopping = [alarm for alarm in alarms if alarm.name in self._stopping]
        if stopping:
            raise RewardError(f"guards.stop: {stopping[0].name} at step {stopping[0].step}: {stopping[0].text}")

    def _record(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        row = plain(metrics)
        self.folder.append_metrics({"step": step, **self._stage, **row})
        self.folder.forget()
        return row


def _known(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """What a row holds, without what was not finite; the prefix of names is left out."""
    return {name.removeprefix(prefix): value for name, value in row.items() if value is not None}
