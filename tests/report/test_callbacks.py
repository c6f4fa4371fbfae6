"""What a run tells while it goes on: callbacks, TensorBoard, and plots and summary before its end."""

import io
import json
import math

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlft
from rlft.config import validate
from rlft.errors import CallbackError, ConfigError
from rlft.report import tracking
from rlft.report.callbacks import NUM_SAMPLES, samples_of
from rlft.report.folder import RunFolder
from rlft.report.tracking import Tracker
from rlft.types import Sampled, Task, TrajectoryInfo


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Listener(rlft.Callback):
    def __init__(self):
        self.heard = []

    def on_begin(self, config, folder):
        self.heard.append(("begin", config["model"], folder.name))

    def on_log(self, step, metrics):
        self.heard.append(("log", step, dict(metrics)))

    def on_evaluate(self, step, metrics, samples):
        self.heard.append(("evaluate", step, dict(metrics), [sample["said"] for sample in samples]))

    def on_save(self, step, checkpoint):
        self.heard.append(("save", step, checkpoint.name))

    def on_alarm(self, step, name, text):
        self.heard.append(("alarm", step, name))

    def on_end(self, summary):
        self.heard.append(("end", summary["steps"], summary["eval_end"]))

    def close(self):
        self.heard.append("close")


def sampled(number, said="42"):
    info = TrajectoryInfo(str(number), "completed", 1.0, {"exact": 1.0}, 1, 1, 0)
    return Sampled(Task(str(number), ({"role": "user", "content": "6*7="},), 42), (info,), ((said,),))


def track(tmp_path, *callbacks, clock=None, **table):
    config = validate({"model": "m", "steps": 4, "run_dir": str(tmp_path / "run"), **table})
    folder = RunFolder.create(tmp_path / "run", config)
    return Tracker(folder, config, Console(file=io.StringIO(), width=200), clock or Clock(), callbacks=callbacks)


def test_a_callback_hears_of_everything_in_order_and_in_plain_data(tmp_path):
    listener = Listener()
    with track(tmp_path, listener) as tracker:
        tracker.evaluation(0, {"mean": 0.5}, [sampled(0)])
        tracker.log(1, {"reward/mean": 0.5, "kl/ref": math.nan, "rollout/ungraded": 0.5})
        tracker.saved(1, tmp_path / "step-000001")
        tracker.finish({"eval_end": 0.75})
    assert listener.heard == [
        ("begin", "m", "run"),
        ("evaluate", 0, {"eval/mean": 0.5}, ["42"]),
        ("log", 1, {"reward/mean": 0.5, "kl/ref": None, "rollout/ungraded": 0.5}),
        ("alarm", 1, "ungraded"),
        ("save", 1, "step-000001"),
        ("end", 1, 0.75),
        "close",
    ]


def test_a_run_that_fails_ends_its_callbacks_without_an_end(tmp_path):
    listener = Listener()
    with pytest.raises(KeyError), track(tmp_path, listener):
        raise KeyError
    assert listener.heard == [("begin", "m", "run"), "close"]


@pytest.mark.parametrize("event", ["on_log", "on_evaluate", "on_end"])
def test_a_callback_that_raises_stops_the_run_with_its_name_and_line(tmp_path, event):
    def broken(self, *data):
        raise ValueError("no channel")

    class Chat(rlft.Callback):
        pass

    setattr(Chat, event, broken)
    expected = rf"callback Chat\.{event} raised ValueError: no channel \(.*test_callbacks\.py, line \d+\)"
    with pytest.raises(CallbackError, match=expected), track(tmp_path, Chat()) as tracker:
        tracker.evaluation(0, {"mean": 0.5})
        tracker.log(1, {"reward/mean": 0.5})
        tracker.finish({})


def test_a_callback_that_cannot_be_closed_is_a_warning_and_never_hides_why_a_run_stopped(tmp_path):
    class Sticky(rlft.Callback):
        def close(self):
            raise OSError("gone")

    tracker = track(tmp_path, Sticky())
    with pytest.raises(KeyError), tracker:
        raise KeyError
    assert "warning: callback Sticky.close raised OSError: gone" in tracker.console.file.getvalue()


def test_what_nothing_would_ever_call_is_an_error(tmp_path):
    class Typo(rlft.Callback):
        def on_evaluation(self, step, metrics, samples):
            raise AssertionError

    with pytest.raises(ConfigError, match=r"Typo\.on_evaluation would never be called; did you mean 'on_evaluate'\?"):
        track(tmp_path / "a", Typo())
    with pytest.raises(ConfigError, match="expected instances of rlft.Callback, got <class .*; make one"):
        track(tmp_path / "b", Listener)
    with pytest.raises(ConfigError, match="derive its class from rlft.Callback"):
        track(tmp_path / "c", print)


def test_samples_are_a_few_and_tell_what_was_said_and_earned():
    (one,) = samples_of([sampled(1, "41\x1b")])
    assert one == {
        **{"task": "1", "prompt": "6*7=", "answer": "42", "said": "41\x1b", "reward": 1.0},
        **{"components": {"exact": 1.0}, "status": "completed"},
    }
    assert len(samples_of([sampled(n) for n in range(100)])) == NUM_SAMPLES


def test_tensorboard_gets_every_number(tmp_path):
    with track(tmp_path, tracking={"tensorboard": True}) as tracker:
        tracker.evaluation(0, {"mean": 0.5})
        tracker.log(1, {"reward/mean": 0.25, "kl/ref": math.nan})
        tracker.log(2, {"reward/mean": 0.75, "rollout/ungraded": 0.5})
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    read = {tag: [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert read["reward/mean"] == [(1, 0.25), (2, 0.75)] and read["eval/mean"] == [(0, 0.5)] and read["alarm/ungraded"] == [(2, 1.0)]
    assert "kl/ref" not in read


def test_plots_and_summary_are_there_while_the_run_goes_on_but_not_anew_at_every_step(tmp_path, monkeypatch):
    drawn, clock = [], Clock()

    def draw(rows, folder):
        drawn.append(rows[-1]["step"])
        clock.now += 2.0  # what drawing takes

    monkeypatch.setattr("rlft.report.plots.draw", draw)
    with track(tmp_path, clock=clock) as tracker:
        for step in range(1, 41):
            clock.now += 10.0
            tracker.log(step, {"reward/mean": 0.5})
            if step == 3:
                summary = json.loads(tracker.folder.summary.read_text())
                assert summary["running"] and summary["steps"] == 3
        assert drawn == [3, 13, 23, 33]  # after 30 s, then as seldom as two seconds are a fiftieth of
        tracker.finish({"eval_end": 1.0})
    assert "running" not in json.loads(tracker.folder.summary.read_text()) and drawn[-1] == 40
    assert tracking.REFRESH_SHARE == 0.02


def test_an_evaluation_and_a_checkpoint_draw_too(tmp_path, monkeypatch):
    drawn, clock = [], Clock()
    monkeypatch.setattr("rlft.report.plots.draw", lambda rows, folder: drawn.append(clock.now))
    with track(tmp_path, clock=clock) as tracker:
        clock.now = 31.0
        tracker.evaluation(1, {"mean": 0.5})
        tracker.saved(1, tmp_path)
        clock.now = 62.0
        tracker.saved(2, tmp_path)
    assert drawn == [31.0, 62.0]
