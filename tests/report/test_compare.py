import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from rlft.cli import app
from rlft.config import validate
from rlft.errors import ConfigError
from rlft.report.compare import compare, differences, read_runs, results
from rlft.report.folder import RunFolder


def write_run(path, earned, ended=True, alarms=(), **table):
    config = validate({"model": "m", "run_dir": str(path), "steps": 10, **table})
    folder = RunFolder.create(path, config)
    passed = {"eval/pass@1": 0.2, "eval/pass@1_low": 0.1, "eval/pass@1_high": 0.3}
    folder.append_metrics({"step": 0, "eval/mean": 0.2, "eval/low": 0.1, "eval/high": 0.3, **passed})
    for step in range(1, 11):
        value = earned * step / 10
        folder.append_metrics({"step": step, "reward/mean": value, "reward/exact": value, "rollout/tokens_total": 100, "time/step_s": 2.0})
    folder.append_metrics({"step": 10, "eval/mean": earned, "eval/low": earned - 0.1, "eval/high": earned + 0.1, "eval/pass@1": earned})
    folder.alarms.write_text("".join(json.dumps({"name": name, "step": 1}) + "\n" for name in alarms))
    if ended:
        folder.write_summary({"steps": 10})
    return path


@pytest.fixture
def runs(tmp_path):
    plain = write_run(tmp_path / "plain", 0.5)
    clipped = {"algorithm": {"name": "grpo", "clip_high": 0.28}, "learner": {"lr": 3e-4}, "reward": {"exact_match": 1.0}}
    return [plain, write_run(tmp_path / "clipped", 0.8, ended=False, alarms=["length", "length"], **clipped)]


def test_only_what_differs_in_the_run_files_is_told(runs):
    told = differences(read_runs(runs))
    assert told == {
        "algorithm.clip_high": ["unset", "0.28"],
        "learner.lr": ["unset", "0.0003"],
        "reward.exact_match": ["unset", "1.0"],
    }
    assert differences(read_runs(runs[:1] * 2)) == {}


def test_the_results_hold_intervals_of_evaluations_both_ends_of_rewards_and_alarms(runs):
    lines = results(read_runs(runs))
    assert lines["eval mean, start"] == ["0.200 [0.100, 0.300]"] * 2
    assert lines["eval mean, end"] == ["0.500 [0.400, 0.600]", "0.800 [0.700, 0.900]"]
    assert lines["reward, start -> end"] == ["0.05 -> 0.5", "0.08 -> 0.8"] == lines["  exact, start -> end"]
    assert lines["sampled tokens/s"] == ["50", "50"] and lines["time of steps (s)"] == ["20", "20"]
    assert lines["alarms"] == ["none", "length 2"]
    assert lines["state"] == ["ended at step 10", "at step 10, not ended"]


def test_a_run_without_a_figure_has_a_gap_in_its_line(runs, tmp_path):
    folder = RunFolder.create(tmp_path / "sft", validate({"model": "m"}))
    folder.append_metrics({"step": 1, "sft/cross_entropy": 2.0, "time/step_s": 1.0})
    lines = results(read_runs([runs[0], folder.path]))
    assert lines["reward, start -> end"] == ["0.05 -> 0.5", "-"] and lines["loss (nats per token), start -> end"] == ["-", "2 -> 2"]
    assert lines["eval mean, end"] == ["0.500 [0.400, 0.600]", "-"] and "kl to the reference" not in str(lines)


def test_the_tables_name_the_runs(runs):
    console = Console(file=io.StringIO(), width=110)
    compare(console, read_runs(runs))
    text = console.file.getvalue()
    assert "plain" in text and "clipped" in text and "algorithm.clip_high" in text and "0.800 [0.700, 0.900]" in text


def test_the_command_prints_the_tables_and_draws_the_curves(runs, tmp_path):
    told = CliRunner().invoke(app, ["compare", *map(str, runs), "--plot", str(tmp_path / "both.png")])
    assert told.exit_code == 0 and "learner.lr" in told.output and (tmp_path / "both.png").stat().st_size > 10_000


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    paths = [write_run(tmp_path / where / "run", 0.5) for where in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no run in"):
        read_runs([tmp_path])
