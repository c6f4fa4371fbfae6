"""wandb at arm's length: a child process, fed by a thread, that can neither delay nor stop a run.

wandb's own service joins its uploads at interpreter exit, hooks `sys.excepthook` and retries for
hours. In a process of its own all of that is bounded by one deadline. This file is both sides:
`WandbFeed` in the run, `main` in the child.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlft.config import TrackingConfig
from rlft.report.callbacks import Callback, Metrics

FINISH_S = 5.0  # longest wait for wandb at the end of a run
INIT_S = 30.0  # longest wait for the server; then the run is kept offline
QUEUED = 1000  # records held while wandb is busy; more are dropped and counted
LATE = f"not finished {FINISH_S:.0f} s after the run"
END = None


class WandbFeed(Callback):
    """Hands what a run tells to wandb without ever waiting for it: numbers, samples of evaluations, alarms, the summary, plots.

    `warn` is called once, from a thread, with what went wrong first.
    """

    def __init__(self, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self._warn, self._unwarned = warn, threading.Lock()
        self._offered = self._logged = 0
        self._queue: queue.Queue[str | None] = queue.Queue(QUEUED)
        with (folder / "wandb.log").open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "rlft.report.wandb"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for the run
            )
        first = {
            "mode": tracking.wandb,
            "project": tracking.wandb_project,
            "entity": tracking.wandb_entity or None,
            "group": tracking.wandb_group or None,
            "tags": tracking.wandb_tags,
            "name": tracking.wandb_name or folder.name,
            "dir": str(folder.absolute()),
            "config": dict(config),
        }
        self._plots = folder.absolute() / "plots"
        self._queue.put_nowait(json.dumps(first))
        self._threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._write, self._read)]
        for thread in self._threads:
            thread.start()

    def on_log(self, step: int, metrics: Metrics) -> None:
        """Queue one row; a full queue drops it."""
        self._offered += 1
        self._send({"step": step, "metrics": dict(metrics)})  # counted: offered, never logged

    def on_evaluate(self, step: int, metrics: Metrics, samples: Sequence[Mapping[str, Any]]) -> None:
        self.on_log(step, metrics)
        if samples:
            rows = [[step, *(_cell(value) for value in sample.values())] for sample in samples]
            self._send({"step": step, "table": {"columns": ["step", *samples[0]], "data": rows}})

    def on_alarm(self, step: int, name: str, text: str) -> None:
        self._send({"step": step, "alarm": name, "text": text})

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """The summary, and every plot as it is now."""
        self._send({"summary": dict(summary), "images": {path.stem: str(path) for path in sorted(self._plots.glob("*.png"))}})

    def _send(self, record: Mapping[str, Any]) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(json.dumps(record))

    def finish(self) -> int:
        """End within FINISH_S, whatever wandb does. Returns the number of rows it did not take."""
        deadline = time.monotonic() + FINISH_S
        if self._child.poll() is None:
            with contextlib.suppress(queue.Full):
                self._queue.put(END, timeout=FINISH_S)
        try:
            self._child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._warn_once(LATE)
            self._child.kill()  # wandb's service watches this process and ends with it
            self._child.wait()
        for thread in self._threads:
            thread.join(max(0.1, deadline - time.monotonic()))
        return self._offered - self._logged

    def _warn_once(self, reason: str) -> None:
        if self._unwarned.acquire(blocking=False):
            self._warn(f"wandb: {reason}. The run goes on; every record is in metrics.jsonl, wandb's messages are in wandb.log")

    def _write(self) -> None:
        assert self._child.stdin
        with contextlib.suppress(OSError), self._child.stdin as pipe:  # a dead child is reported by the reader
            while (line := self._queue.get()) is not END:
                print(line, file=pipe, flush=True)

    def _read(self) -> None:
        assert self._child.stdout
        with self._child.stdout as lines:
            for line in lines:
                answer = json.loads(line)
                self._logged = answer.get("logged", self._logged)
                if "problem" in answer:
                    self._warn_once(answer["problem"])
        if code := self._child.wait():
            self._warn_once(f"its process ended with code {code}")


def main() -> None:
    """The child: JSON lines from stdin to wandb; to stdout how many were logged and what went wrong."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what wandb and its service print goes to wandb.log
    try:
        run = _start(json.loads(sys.stdin.readline()), lambda problem: _answer(answers, problem=problem))
        logged = 0
        for line in sys.stdin:
            record = json.loads(line)
            _hand_on(run, record)
            logged += "metrics" in record
            _answer(answers, logged=logged)
        # The run may be gone, killed even: nobody else would end an upload that cannot succeed.
        threading.Timer(FINISH_S, _give_up, [answers]).start()
        run.finish()
    except Exception as error:
        traceback.print_exc()
        _answer(answers, problem=f"{type(error).__name__}: {error}")
        os._exit(1)
    os._exit(0)  # both not through wandb's exit hook, which waits without limit


def _hand_on(run: Any, record: Mapping[str, Any]) -> None:
    """One record to wandb, by what it holds."""
    import wandb

    if "metrics" in record:
        run.log({name: value for name, value in record["metrics"].items() if value is not None}, step=record["step"])
    if "table" in record:
        run.log({"samples": wandb.Table(**record["table"])}, step=record["step"])
    if "alarm" in record:
        run.log({f"alarm/{record['alarm']}": 1}, step=record["step"])
        run.alert(title=record["alarm"], text=record["text"], level="WARN")
    if "summary" in record:
        run.log({f"plots/{name}": wandb.Image(path) for name, path in record["images"].items()})
        run.summary.update(record["summary"])


def _cell(value: Any) -> str | float | int | None:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping | list | tuple) else value


def _answer(answers: TextIO, **what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the run is gone; wandb still gets what it sent
        print(json.dumps(what), file=answers)


def _give_up(answers: TextIO) -> None:
    _answer(answers, problem=LATE)
    os._exit(1)


def _start(first: Mapping[str, Any], report: Callable[[str], None]) -> Any:
    import wandb

    settings = wandb.Settings(console="off", silent=True, save_code=False, init_timeout=INIT_S)
    options = {key: first[key] for key in ("project", "entity", "group", "tags", "name", "dir", "config")}
    try:
        return wandb.init(mode=first["mode"], settings=settings, **options)
    except wandb.Error as error:  # no account, or no server
        if first["mode"] != "online":
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        report(f"{reason}; logging offline, send it later with `wandb sync {first['dir']}/wandb/offline-run-*`")
        return wandb.init(mode="offline", settings=settings, **options)


if __name__ == "__main__":
    main()
