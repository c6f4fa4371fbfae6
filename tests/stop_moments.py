"""Moments of a training run, from its first second to its last, each told by what can be seen from outside, and what a signal does then."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from rlft.recipes.starter import make_model

ROOT = Path(__file__).parents[1]
STEPS = 3
APPEAR_S = 240.0  # longest wait for a moment
LOOK_S = 0.01  # between two looks
GONE_S = 20.0  # longest wait for an end, far beyond what is promised
REWARD = """
import time
from pathlib import Path

def brief(task, trajectory, *, takes_s=0.0):
    Path({graded!r}).touch()
    time.sleep(takes_s)
    return float(trajectory.num_sampled <= 4)
"""


@dataclass
class Started:
    """`rlft train` in a shell of its own, and its folder."""

    folder: Path
    process: subprocess.Popen
    mark: str  # in the environment of everything that it starts

    @property
    def run(self):
        return self.folder / "run"

    @property
    def printed(self):
        return (self.folder / "out").read_text()

    def mine(self):
        """Everything alive that it started, wherever that has gone."""
        return [process for process in psutil.process_iter() if _marked(process, self.mark)]

    def names(self):
        """What its processes call themselves."""
        return [" ".join(_quietly(process.cmdline, [])) for process in self.mine()]

    def loads(self, library):
        """Whether one of its processes has a library mapped."""
        return any(library in _quietly(lambda pid=process.pid: Path(f"/proc/{pid}/maps").read_text(), "") for process in self.mine())


@dataclass(frozen=True)
class Stopped:
    """What a signal did."""

    seconds: float  # until the command ended
    gone_s: float  # until nothing that it had started was left
    status: int
    said: str  # on standard error
    left: list[str]


MOMENTS: dict[str, Callable[[Started], bool]] = {
    "the command has begun": lambda started: len(started.mine()) > 1,
    "the run file is read": lambda started: started.loads("pydantic_core"),
    "torch loads": lambda started: started.loads("libtorch_cpu"),
    "Ray starts": lambda started: any("gcs_server" in name for name in started.names()),
    "actors are made": lambda started: any("ray::RolloutWorker" in name for name in started.names()),
    "the engine loads": lambda started: any("ray::RolloutWorker" in name for name in started.names()) and started.loads("vllm"),
    "the first answers are graded": lambda started: (started.folder / "graded").exists(),
    "the first step runs": lambda started: len(_rows(started)) == 1,
    "a checkpoint is being written": lambda started: any((started.run / "checkpoints").glob(".step-*")),
    "a checkpoint is complete": lambda started: any((started.run / "checkpoints").glob("step-*/progress.json")),
    "the summary is written": lambda started: _summary(started).get("steps") == STEPS,
    "everything is said": lambda started: "run folder:" in started.printed,
}
COMMITTED = ("the summary is written", "everything is said")


def begin(folder, *arguments, command="train"):
    """Start a command on a tiny run whose every answer is graded by a reward of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        make_model(folder / "model", layers=1, width=32)
    rows = [json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n)}) for n in range(8)]
    (folder / "tasks.jsonl").write_text("\n".join(rows))
    (folder / "my_reward.py").write_text(REWARD.format(graded=str(folder / "graded")))
    (folder / "graded").unlink(missing_ok=True)
    (folder / "run.toml").write_text(
        f"""
        model = "model"
        steps = {STEPS}
        run_dir = "run"
        tasks_per_step = 4
        data.source = "tasks.jsonl"
        reward = {{ "my_reward:brief" = 1.0 }}
        rollout = {{ group_size = 4, max_tokens = 8, max_model_len = 64, max_num_seqs = 16, memory = 0.25 }}
        learner = {{ lr = 1e-3, max_tokens_per_micro_batch = 256 }}
        eval = {{ data.source = "tasks.jsonl", samples = 1, max_tokens = 8 }}
        tracking = {{ save_every = 1 }}
        """
    )
    mark = f"RLFT_STOPPED_{uuid.uuid4().hex}"
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    words = [sys.executable, "-m", "rlft", command, *([] if command == "demo" else ["run.toml"]), *arguments]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, mark: "1"},
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )
    return Started(folder, process, mark)


def wait_for(started, moment):
    """Until the moment has come. A run that ends before it has missed it."""
    deadline = time.monotonic() + APPEAR_S
    while not MOMENTS[moment](started):
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(LOOK_S)
        if started.process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"{moment}: never seen; exit status {started.process.poll()}: {(started.folder / 'err').read_text()}")


def stop(started, number, to_group):
    """Send a signal, to the command alone or, as a terminal does, to the whole group, and see what becomes of it."""
    began = time.monotonic()
    (os.killpg if to_group else os.kill)(started.process.pid, number)
    try:
        status = started.process.wait(GONE_S)
        seconds = time.monotonic() - began
        while started.mine() and time.monotonic() - began < GONE_S:
            psutil.wait_procs(started.mine(), 0.05)
        gone_s, left = time.monotonic() - began, started.names()
    finally:
        end(started)
    return Stopped(seconds, gone_s, status, (started.folder / "err").read_text(), left)


def end(started):
    """Whatever happened, leave nothing behind."""
    started.process.kill()
    for process in started.mine():
        _quietly(process.kill, None)
    started.process.wait(GONE_S)


def _rows(started):
    file = started.run / "metrics.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def _summary(started):
    file = started.run / "summary.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _marked(process, mark):
    return process.pid != os.getpid() and mark in _quietly(process.environ, {}) and _quietly(process.status, "") != psutil.STATUS_ZOMBIE


def _quietly(ask, otherwise):
    """What a process tells, unless it is gone."""
    with contextlib.suppress(psutil.Error, OSError):
        return ask()
    return otherwise
