import io
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import rlft.config
import rlft.report.wandb
from rlft.config import TrackingConfig
from rlft.data.sources import BadRow
from rlft.report.folder import RunFolder, plain
from rlft.report.lines import StepLine, evaluation_text, step_parts
from rlft.report.tracking import Tracker
from rlft.report.wandb import FINISH_S, WandbFeed
from rlft.types import Sampled, Task, TrajectoryInfo

CONFIG = rlft.config.validate({"model": "m", "steps": 4})


def config(wandb="off", steps=4, **tracking):
    return rlft.config.validate({"model": "m", "steps": steps, "tracking": {"wandb": wandb, **tracking}})


EARNED = TrajectoryInfo("t", "completed", 0.5, {"exact": 0.5}, 1, 1, 0)
SAMPLED = Sampled(Task("t", ({"role": "user", "content": "6*7="},), 42), (EARNED,), (("41",),))


class Screen(Console):
    def __init__(self, terminal=False):
        super().__init__(file=io.StringIO(), force_terminal=terminal, width=200)

    @property
    def shown(self):
        assert isinstance(self.file, io.StringIO)
        return self.file.getvalue()


def strictly(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


NUMBERS = st.floats() | st.integers() | st.floats(width=32).map(np.float32) | st.integers(-9, 9).map(np.int64) | st.text()


@given(st.dictionaries(st.text(), NUMBERS, max_size=5))
def test_every_line_of_metrics_is_valid_json_and_comes_back(tmp_path_factory, metrics):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    folder.append_metrics(metrics)
    folder.append_metrics({"step": 2})
    lines = folder.metrics.read_text().splitlines()
    assert [strictly(line) for line in lines] == folder.rows() == [plain(metrics), {"step": 2}]
    for key, value in metrics.items():
        assert plain(metrics)[key] == (value if isinstance(value, str) or math.isfinite(value) else None)


def test_half_a_last_line_is_no_row(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.rows() == []
    folder.metrics.write_text('{"step": 1}\n{"step": 2, "rew')
    assert folder.rows() == [{"step": 1}]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_summary({"eval_end": np.float32(0.5), "bad": math.nan, "list": [1, (math.inf,)]})
    assert strictly(folder.summary.read_text()) == {"eval_end": 0.5, "bad": None, "list": [1, [None]]}
    with pytest.raises(TypeError):
        folder.write_summary({"x": object()})
    assert strictly(folder.summary.read_text())["eval_end"] == 0.5


def test_rollouts_of_steps_that_are_done_again_go_with_their_rows(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    for name in ("step-000002", "step-000003", "eval-000002", "eval-anew-000003", "greedy-000004"):
        (folder.rollouts / f"{name}.parquet").touch()
    folder.append_metrics({"step": 1})
    folder.cut(1, 2)
    assert sorted(path.stem for path in folder.rollouts.iterdir()) == ["eval-000002", "step-000002"]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run_four_steps(folder, console, clock=None):
    clock = clock or Clock()
    with Tracker(folder, CONFIG, console, clock) as tracker:
        tracker.evaluation(0, {"mean": 0.4, "low": 0.3, "high": 0.5, "pass@1": 0.4, "greedy": 0.8})
        for step in range(1, 5):
            clock.now += 10.0
            tracker.log(step, {"reward/mean": step / 4, "rollout/tokens_total": 1000, "time/step_s": 10.0})
        tracker.finish({"eval_end": 0.9})


def test_a_run_leaves_rows_evaluations_and_a_summary(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    run_four_steps(folder, Screen())
    first, *steps = folder.rows()
    assert first == {"step": 0, "eval/mean": 0.4, "eval/low": 0.3, "eval/high": 0.5, "eval/pass@1": 0.4, "eval/greedy": 0.8}
    assert [(row["step"], row["reward/mean"]) for row in steps] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert strictly(folder.summary.read_text()) == {
        "steps": 4,
        "wall_s": 40.0,
        "startup": {"until the first step": 0.0},
        "tokens_per_s": 100.0,
        "alarms": {},
        "eval_end": 0.9,
    }


def test_a_row_is_on_disk_before_log_returns(tmp_path):
    tracker = Tracker(RunFolder.create(tmp_path / "run", CONFIG), CONFIG, Screen())
    tracker.log(1, {"reward/mean": 0.5})
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1, "reward/mean": 0.5}\n'


def test_off_a_terminal_every_step_is_one_plain_line(tmp_path):
    console = Screen()
    run_four_steps(RunFolder.create(tmp_path / "run", CONFIG), console)
    lines = console.shown.splitlines()
    assert lines[0] == "step 0/4  eval 0.400 [0.300, 0.500] greedy 0.800"
    assert lines[2] == "step 2/4  reward 0.500  eval 0.400 [0.300, 0.500] greedy 0.800  100 tokens/s  left 0:00:20"
    assert len(lines) == 5 and "\x1b" not in console.shown


def test_on_a_terminal_there_is_one_live_line(tmp_path):
    console = Screen(terminal=True)
    run_four_steps(RunFolder.create(tmp_path / "run", CONFIG), console)
    shown = console.shown
    assert "step 4/4" in shown and "reward 1.000" in shown and "100 tokens/s" in shown and "left 0:00:00" in shown
    assert shown.endswith("\x1b[?25h")  # the cursor is back


def test_a_run_that_raises_gives_the_terminal_back(tmp_path):
    console = Screen(terminal=True)
    with pytest.raises(KeyError), Tracker(RunFolder.create(tmp_path / "run", CONFIG), CONFIG, console) as tracker:
        tracker.log(1, {"reward/mean": 0.5})
        assert "\x1b[?25h" not in console.shown
        raise KeyError
    assert "\x1b[?25h" in console.shown


def test_the_screen_survives_missing_numbers():
    assert StepLine(1, 2, step_parts({}, None, None), 3725.4).plain() == "step 1/2  loss nan  left 1:02:05"
    assert evaluation_text({"mean": 0.5, "low": math.nan, "high": math.nan}) == "eval 0.500"
    assert evaluation_text({"mean": 0.5}) == "eval 0.500"


def test_bad_rows_are_stored_and_shown(tmp_path):
    console, folder = Screen(), RunFolder.create(tmp_path / "run", CONFIG)
    bad = BadRow("a[1].jsonl", 3, "prompt", "empty [/] \ud800".encode("ascii", "backslashreplace").decode())
    with Tracker(folder, CONFIG, console) as tracker:
        tracker.quarantine([])
        assert not folder.quarantine.exists() and not console.shown
        tracker.quarantine([bad])
    assert [BadRow(**strictly(line)) for line in folder.quarantine.read_text().splitlines()] == [bad]
    assert "a[1].jsonl, row 3, field 'prompt': empty [/]" in console.shown


def wandb_processes():
    """The living wandb services and feeds of this machine."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if ("wandb-core" in command or "rlft.report.wandb" in command) and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process)
    return found


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    """A home without a login; afterwards, no process of wandb is left."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    before = wandb_processes()
    yield
    _, left = psutil.wait_procs(wandb_processes() - before, timeout=10)
    left = [process for process in left if process.status() != psutil.STATUS_ZOMBIE]
    for process in left:
        process.kill()
    assert not left, "wandb left processes behind"


def feed_fifty(folder, mode, **tracking):
    console, cfg = Screen(), config(mode, steps=50, **tracking)
    tracker = Tracker(folder, cfg, console)
    started = time.monotonic()
    for step in range(1, 51):
        tracker.log(step, {"reward/mean": step / 50, "kl/ref": math.nan, "rollout/tokens": 10.0 * step})
    logging_s = time.monotonic() - started
    return tracker, console, logging_s


def assert_complete(folder):
    assert [(row["step"], row["reward/mean"]) for row in folder.rows() if "reward/mean" in row] == [(s, s / 50) for s in range(1, 51)]


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_wandb_without_an_account_is_a_local_run(tmp_path, no_account, monkeypatch, mode):
    monkeypatch.setattr(rlft.report.wandb, "FINISH_S", 120.0)  # this run ends before wandb has started
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    tracker, console, _ = feed_fifty(folder, mode, wandb_entity="team", wandb_group="sweep", wandb_tags=["tag-7"], wandb_name="named")
    tracker.evaluation(50, {"mean": 0.5}, [SAMPLED])
    tracker.finish({"eval_end": 0.123456789})
    (record,) = folder.path.glob("wandb/offline-run-*/run-*.wandb")
    kept = record.read_bytes()
    assert kept.count(b"reward/mean") >= 50
    for told in (b"team", b"sweep", b"tag-7", b"named", b"alarm/length", b"0.123456789", b"samples", b"plots/reward"):
        assert told in kept, told
    (table,) = folder.path.glob("wandb/offline-run-*/files/media/table/samples*.json")
    assert strictly(table.read_text())["data"] == [[50, "t", "6*7=", "42", "41", 0.5, '{"exact": 0.5}', "completed"]]
    assert {path.name.partition("_")[0] for path in folder.path.glob("wandb/offline-run-*/files/media/images/plots/*.png")} >= {"summary"}
    assert strictly(folder.summary.read_text())["wandb_dropped"] == 0
    warnings = [line for line in console.shown.splitlines() if "warning: wandb" in line]
    assert len(warnings) == (mode == "online") and all("No API key" in line and "offline" in line for line in warnings)
    assert_complete(folder)


@pytest.mark.slow
def test_a_wandb_that_cannot_be_reached_delays_a_run_by_its_deadline_at_most(tmp_path, no_account, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    tracker, console, logging_s = feed_fifty(folder, "online")
    started = time.monotonic()
    tracker.finish({})
    assert logging_s < 1 and time.monotonic() - started < FINISH_S + 1
    assert_complete(folder)
    assert strictly(folder.summary.read_text())["wandb_dropped"] == 50
    assert len([line for line in console.shown.splitlines() if "warning: wandb" in line]) == 1


def test_a_wandb_that_dies_is_one_warning_and_every_lost_record_is_counted(tmp_path, no_account):
    warnings, warned = [], threading.Event()

    def warn(message):
        warnings.append(message)
        warned.set()

    feed = WandbFeed(tmp_path, TrackingConfig().model_copy(update={"wandb": "no such mode"}), {}, warn)
    assert warned.wait(60)
    for step in range(2000):  # more than the queue holds
        feed.on_log(step, {"x": 1})
    started = time.monotonic()
    assert feed.finish() == 2000
    assert time.monotonic() - started < FINISH_S + 1
    assert len(warnings) == 1 and "no such mode" in warnings[0] and "wandb.log" in warnings[0]


def test_tracking_alone_loads_neither_wandb_nor_tensorboard_nor_matplotlib():
    code = "import rlft.report.tracking, sys; sys.exit(bool({'wandb', 'torch', 'tensorboard', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_the_learner_chose_is_said_and_what_it_has_no_room_for_is_a_warning(tmp_path):
    console = Screen()
    with Tracker(RunFolder.create(tmp_path / "run", CONFIG), CONFIG, console) as tracker:
        tracker.learner({"chosen": "learner: chosen zero_stage = 0", "tight": "learner: a row"})
        tracker.learner({})  # the control: a run file that leaves nothing open
    assert console.shown.splitlines() == ["learner: chosen zero_stage = 0", "warning: learner: a row"]
