import math
import sys
import threading

import numpy as np
import pytest
from matplotlib.image import imread

from rlft.report.plots import DPI, SIZE, draw, series

ALL = {"reward.png", "evaluation.png", "lengths.png", "kl.png", "timings.png"}


def run_rows(n=60, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for step in range(n + 1):
        if step % 20 == 0:
            mean = 0.4 + 0.4 * step / n
            rows.append({"step": step, "eval/mean": mean, "eval/low": mean - 0.04, "eval/high": mean + 0.04, "eval/pass@1": mean,
                         "eval/pass@1_low": mean - 0.04, "eval/pass@4": mean + 0.1, "eval/greedy": 0.9})  # fmt: skip
        if step:
            rows.append({"step": step, "reward/mean": 0.4 + 0.4 * step / n + rng.normal(0, 0.02), "reward/std": 0.3,
                         "rollout/tokens": 9.0, "rollout/tokens_max": 24, "rollout/truncated": 0.1,
                         "kl/ref": 0.001 * step, "kl/rollout": None, "policy/entropy": 1 - step / n,
                         "time/rollout_s": 1 + rng.random(), "time/learner_s": 0.7, "time/publish_s": 0.1, "time/other_s": 0.1,
                         "time/step_s": 2.5, "kl/old_max": 9.0})  # fmt: skip
    return rows


def test_a_full_run_gives_every_plot(tmp_path):
    files = draw(run_rows(), tmp_path / "plots")
    assert {file.name for file in files} == ALL
    for file in files:
        pixels = imread(file)
        assert pixels.shape[:2] == (SIZE[1] * DPI, SIZE[0] * DPI)
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20  # something is drawn


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"reward/mean": 0.5}, "reward.png"),
        ({"eval/mean": 0.5, "eval/low": None, "eval/high": None}, "evaluation.png"),
        ({"rollout/tokens": 3.0}, "lengths.png"),
        ({"kl/ref": 0.1}, "kl.png"),
        ({"policy/entropy": 0.1}, "kl.png"),
        ({"kl/old": 0.1, "kl/old_max": 0.2}, "kl.png"),
        ({"time/step_s": 1.0, "time/other_s": 1.0}, "timings.png"),
    ],
)
def test_a_plot_is_drawn_from_its_own_numbers_and_skipped_without(tmp_path, row, name):
    assert [file.name for file in draw([{"step": 1, **row}], tmp_path)] == [name]
    assert draw([{"step": 1, **dict.fromkeys(row)}], tmp_path / "none") == []


def test_no_rows_give_no_plots(tmp_path):
    assert draw([], tmp_path) == []


def test_a_series_holds_the_finite_numbers_by_step():
    rows = [{"step": 3, "x": 1.0}, {"step": 1, "x": 2}, {"step": 2, "x": None}, {"step": 4, "x": math.nan}, {"step": 5}]
    steps, values = series(rows, "x")
    assert (steps.tolist(), values.tolist()) == ([1, 3], [2.0, 1.0])


def test_plots_can_be_drawn_from_any_thread_without_pyplot(tmp_path):
    threads = [threading.Thread(target=draw, args=(run_rows(20), tmp_path / str(i))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all({file.name for file in (tmp_path / str(i)).iterdir()} == ALL for i in range(2))
    assert "matplotlib.pyplot" not in sys.modules
