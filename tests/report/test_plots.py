import math
import sys
import threading

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from rlft.report.plots import COMPARED, DPI, GREY, KL_FLOOR, PALETTE, PICTURES, SIZE, draw, draw_runs, series

ALL = {"reward.png", "evaluation.png", "lengths.png", "kl.png", "timings.png", "summary.png"}


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
                         "reward/exact": 0.5, "reward/brief": 0.9, "rollout/reward_min": 0.0, "rollout/reward_max": 1.0,
                         "rollout/tokens": 9.0, "rollout/tokens_max": 24, "rollout/truncated": 0.1,
                         "kl/ref": 0.001 * step, "kl/rollout": None, "policy/entropy": 1 - step / n,
                         "time/rollout_s": 1 + rng.random(), "time/learner_s": 0.7, "time/publish_s": 0.1, "time/other_s": 0.1,
                         "time/step_s": 2.5, "kl/old_max": 9.0})  # fmt: skip
    return rows


def drawn(rows, picture, title):
    """The axes of one panel."""
    (panel,) = [panel for panel in PICTURES[picture] if panel.title.startswith(title)]
    axes = Figure().add_subplot()
    panel.draw(rows, axes)
    return axes


def curves(axes):
    return {line.get_label(): line.get_ydata().tolist() for line in axes.get_lines()}


def test_a_full_run_gives_every_picture_and_one_of_all(tmp_path):
    files = draw(run_rows(), tmp_path / "plots")
    assert {file.name for file in files} == ALL == {file.name for file in (tmp_path / "plots").iterdir()}
    for file in files:
        pixels = imread(file)[::5, ::5]
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 20  # something is drawn
    assert imread(tmp_path / "plots" / "evaluation.png").shape[:2] == (SIZE[1] * DPI, SIZE[0] * DPI)


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
        ({"sft/cross_entropy": 1.0}, "loss.png"),
        ({"loss/preference": 0.7, "preference/accuracy": 0.5}, "loss.png"),
    ],
)
def test_a_picture_is_drawn_from_its_own_numbers_and_skipped_without(tmp_path, row, name):
    assert [file.name for file in draw([{"step": 1, **row}], tmp_path)] == [name, "summary.png"]
    assert draw([{"step": 1, **dict.fromkeys(row)}], tmp_path / "none") == []


def test_no_rows_give_no_pictures(tmp_path):
    assert draw([], tmp_path) == []


def test_a_series_holds_the_finite_numbers_by_step():
    rows = [{"step": 3, "x": 1.0}, {"step": 1, "x": 2}, {"step": 2, "x": None}, {"step": 4, "x": math.nan}, {"step": 5}]
    steps, values = series(rows, "x")
    assert (steps.tolist(), values.tolist()) == ([1, 3], [2.0, 1.0])


def test_the_band_of_rewards_ends_where_the_rewards_do():
    rows = [{"step": n, "reward/mean": 0.9, "reward/std": 0.3, "rollout/reward_min": 0.0, "rollout/reward_max": 1.0} for n in (1, 2)]
    (band,) = drawn(rows, "reward", "Reward per").collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == 1.0 and heights.min() == pytest.approx(0.6)
    unbounded = [{key: value for key, value in row.items() if not key.startswith("rollout/")} for row in rows]
    (band,) = drawn(unbounded, "reward", "Reward per").collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(1.2)  # the control: nobody knows of a bound


def test_every_component_has_a_curve_and_statistics_have_none():
    assert set(curves(drawn(run_rows(4), "reward", "Reward components"))) == {"reward/exact", "reward/brief"}


@pytest.mark.parametrize(("values", "top"), [([1e-9, 2e-9, 1e-9], KL_FLOOR), ([0.0, 0.5, 1.0], 1.05)])
def test_a_kl_that_is_noise_looks_like_none_and_a_real_one_fills_the_picture(values, top):
    axes = drawn([{"step": n, "kl/ref": value} for n, value in enumerate(values)], "kl", "KL")
    assert axes.get_ylim()[1] == pytest.approx(top) and axes.get_ylim()[0] <= -0.001


def test_supervised_runs_show_loss_and_accuracy_and_rewarded_ones_no_loss():
    sft = [{"step": n, "loss/policy": 1.0, "sft/cross_entropy": 2.0 / n} for n in (1, 2)]
    assert curves(drawn(sft, "loss", "Loss")) == {"sft/cross_entropy": [2.0, 1.0]}
    pairs = [{"step": n, "loss/policy": 0.7, "preference/accuracy": 0.5 * n, "preference/margin": n} for n in (1, 2)]
    assert curves(drawn(pairs, "loss", "Loss")) == {"loss/policy": [0.7, 0.7]}
    held = [*pairs, {"step": 2, "eval/mean": 0.9, "eval/low": 0.8, "eval/high": 1.0}]
    axes = drawn(held, "loss", "Accuracy")
    assert axes.get_lines()[0].get_ydata().tolist() == [0.5, 1.0] and axes.get_ylim() == (-0.02, 1.02)
    assert curves(drawn(pairs, "loss", "Margin")) == {"preference/margin": [1.0, 2.0]}
    rewarded = [{**row, "reward/mean": 0.5} for row in pairs]
    assert not PICTURES["loss"][0].keys(rewarded)


def test_small_parts_of_a_step_are_told_as_other_and_the_sum_stays():
    parts = {f"time/part{n}_s": 1.0 + n for n in range(12)}
    axes = drawn([{"step": 1, **parts, "time/other_s": 0.5, "time/step_s": sum(parts.values()) + 0.5}], "timings", "Where")
    handles, names = axes.get_legend_handles_labels()
    assert len(names) == len(PALETTE) + 1 and names[-1] == "other" and "part11" in names and "part0" not in names
    heights = [np.ptp(handle.get_paths()[0].vertices[:, 1]) for handle in handles]
    assert sum(heights) == pytest.approx(sum(parts.values()) + 0.5) and heights[0] == 12.0


# Linear RGB as people see it who lack one kind of cone (Machado et al. 2009, severity 1).
BLIND = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color, matrix):
    """CIELAB of a colour as seen."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest_pair(colors, matrix):
    seen = [lab(color, matrix) for color in colors]
    return min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("kind", BLIND)
def test_curves_stay_apart_for_people_who_lack_a_kind_of_cone(kind):
    assert nearest_pair([*PALETTE[:6], GREY], BLIND[kind]) > 10  # differences from about 2 on are seen side by side
    assert nearest_pair(PALETTE, BLIND[kind]) > 5


def test_the_usual_colours_would_not_pass():
    usual = [f"C{n}" for n in range(9)]
    assert min(nearest_pair(usual[:6], BLIND[kind]) for kind in BLIND) < 10


def test_several_runs_are_one_picture_with_a_curve_each(tmp_path):
    runs = {"a": run_rows(20), "b": run_rows(40, 1), "sft": [{"step": 1, "sft/cross_entropy": 1.0}]}
    file = draw_runs(runs, tmp_path / "deep" / "runs.png")
    assert imread(file).shape[2] == 4 and [path.name for path in file.parent.iterdir()] == ["runs.png"]
    with pytest.raises(ValueError, match="no run holds a curve"):
        draw_runs({"a": [{"step": 1, "x": 1.0}]}, tmp_path / "none.png")


def test_every_axis_has_a_label_with_its_unit():
    labels = [panel.label for panels in PICTURES.values() for panel in panels] + [label for _, label in COMPARED.values()]
    assert all(labels) and {label for label in labels if "time" in label} == {"wall time (s)"}


def test_pictures_can_be_drawn_from_any_thread_without_pyplot(tmp_path):
    threads = [threading.Thread(target=draw, args=(run_rows(20), tmp_path / str(i))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all({file.name for file in (tmp_path / str(i)).iterdir()} == ALL for i in range(2))
    assert "matplotlib.pyplot" not in sys.modules
