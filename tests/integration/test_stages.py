"""Two stages on the real stack, interrupted in the second: the resumed run ends like one that was never interrupted."""

import json
import tomllib
from pathlib import Path

import pytest
from safetensors.torch import load_file

import rlft
from rlft.config import validate
from rlft.data.stored import read
from rlft.errors import ConfigError, RewardError
from rlft.recipes.starter import make_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def low_bytes(task, trajectory, *, broken=""):
    """Share of low tokens; while the file `broken` exists it cannot grade the last step's groups, which are numbered from 12."""
    if Path(broken).is_file() and int(trajectory.group_id.partition("/")[0]) >= 12:
        raise RuntimeError("the grader broke")
    ids = trajectory.turns[-1].completion.token_ids
    return sum(token < 130 for token in ids) / len(ids)


def run_file(folder, model, name):
    return validate(
        {
            "model": str(model),
            "tasks_per_step": 4,
            "run_dir": str(folder / name),
            "data": {"source": str(folder / "tasks.jsonl"), "curriculum": "easy_first"},
            "reward": {f"{__name__}:low_bytes": {"broken": str(folder / f"{name}.broken")}},
            "rollout": {"group_size": 4, "max_tokens": 4, "max_model_len": 32, "memory": 0.5, "max_num_seqs": 16},
            "learner": {"lr": 1e-2, "max_tokens_per_micro_batch": 256},
            "eval": {"threshold": 0.6},
            "tracking": {"save_every": 1},
            "stages": [
                {"name": "first", "steps": 2},
                {"name": "second", "steps": 2, "algorithm": {"name": "grpo", "kl_coef": 0.01}, "rollout": {"max_tokens": 5}},
            ],
        }
    )


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def played(folder, step):
    """Group ids, with their tasks, and tokens of a step."""
    records = read(folder / "rollouts" / f"step-{step:06d}.parquet", None)
    return sorted((record["group_id"], record["index"], tuple(record["token_ids"])) for record in records)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of an uninterrupted run and of an interrupted one that was resumed, and what the latter had left before."""
    folder = tmp_path_factory.mktemp("stages")
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"prompt": f"{n}+{n}=", "answer": str(2 * n)}) + "\n" for n in range(6)))
    model = make_model(folder / "model", layers=1, width=32)
    whole, cut = run_file(folder, model, "whole"), run_file(folder, model, "cut")
    rlft.train(whole)
    flag = folder / "cut.broken"
    flag.touch()
    with pytest.raises(RewardError, match="the grader broke"):
        rlft.train(cut)
    left = rows_of(folder / "cut")
    flag.unlink()
    (folder / "cut" / "checkpoints" / "step-000004").mkdir()  # a checkpoint that was begun
    summary = rlft.train(cut, resume=True)
    return folder / "whole", folder / "cut", left, summary, cut


def test_the_interrupted_run_had_got_into_its_second_stage(runs):
    _, _, left, _, _ = runs
    assert [(row["step"], row["stage"]) for row in left] == [(1, 0), (2, 0), (3, 1)]


def test_it_resumes_in_that_stage_with_the_tasks_and_tokens_that_it_would_have_had(runs):
    whole, cut, _, summary, _ = runs
    assert [(row["step"], row["stage"]) for row in rows_of(cut)] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert played(cut, 4) == played(whole, 4) and played(cut, 4) != played(cut, 3)
    assert summary["steps"] == 4 and summary["checkpoint"].endswith("step-000004")


def test_its_metrics_its_ledger_and_its_weights_are_those_of_the_uninterrupted_run(runs):
    whole, cut, _, _, _ = runs
    for one, other in zip(rows_of(whole), rows_of(cut), strict=True):
        names = [name for name in one if not name.startswith("time/") and not name.startswith("publish/")]
        assert {name: other[name] for name in names} == pytest.approx({name: one[name] for name in names}, abs=1e-5, rel=1e-4)
    assert json.loads((cut / "ledger.json").read_text()) == json.loads((whole / "ledger.json").read_text())
    ends = [load_file(folder / "checkpoints/step-000004/model.safetensors") for folder in (whole, cut)]
    before = load_file(cut / "checkpoints/step-000003/model.safetensors")
    assert max(float((ends[0][name] - ends[1][name]).abs().max()) for name in ends[0]) < 1e-6
    assert max(float((ends[1][name] - before[name]).abs().max()) for name in before) > 1e-3  # the control: a step moves them


def test_only_the_newest_checkpoint_holds_optimizer_state(runs):
    _, cut, _, _, _ = runs
    assert [path.parent.name for path in sorted(cut.glob("checkpoints/*/state"))] == ["step-000004"]
    progress = json.loads((cut / "checkpoints/step-000003/progress.json").read_text())
    assert (progress["stage"], progress["stage_step"], progress["weights"]) == (1, 1, "step-000002")


def test_a_run_that_ended_is_not_resumed(runs):
    with pytest.raises(ConfigError, match="ended at step 4; raise steps to go on"):
        rlft.train(runs[-1], resume=True)


def test_a_resumed_run_must_have_the_same_run_file(runs):
    other = tomllib.loads(runs[-1].to_toml())
    other["learner"]["lr"] = 3e-3
    with pytest.raises(ConfigError, match="only steps may change:\n  learner.lr: 0.01 then, 0.003 now$"):
        rlft.train(validate(other), resume=True)
