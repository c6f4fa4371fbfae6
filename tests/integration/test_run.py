"""A whole run on real Ray, vLLM and DeepSpeed: two rollout workers, two learner ranks."""

import json
import math
from pathlib import Path

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlft
from rlft.config import validate
from rlft.data.stored import read
from rlft.errors import RewardError
from rlft.recipes.starter import make_model
from rlft.types import Source

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

EOS = "<|im_end|>"


def low_bytes(task, trajectory):
    """Share of the sampled tokens from the lower half of the vocabulary: an untrained policy learns it at once."""
    ids = trajectory.turns[-1].completion.token_ids
    return sum(token < 130 for token in ids) / len(ids)


def few(task, trajectory, *, limit=8):
    return float(trajectory.num_sampled <= limit)


def write_tasks(path, number):
    rows = [json.dumps({"question": f"{n}+{n}=", "answer": str(2 * n), "level": n % 3}) for n in range(number)]
    path.write_text("\n".join([*rows, json.dumps({"answer": "no question"}), "not json"]))
    return str(path)


def run_file(folder, model, steps=6, **changes):
    table = {
        "model": str(model),
        "steps": steps,
        "tasks_per_step": 12,
        "run_dir": str(folder / "run"),
        "data": {"source": write_tasks(folder / "tasks.jsonl", 40), "prompt": "question"},
        "algorithm": {"name": "grpo", "kl_coef": 0.001, "is_cap": 2.0},
        "rollout": {"num_workers": 2, "group_size": 8, "max_tokens": 8, "max_model_len": 64, "memory": 1.0, "max_num_seqs": 64},
        "learner": {"num_ranks": 2, "lr": 1e-2, "zero_stage": 2, "max_tokens_per_micro_batch": 256, "num_minibatches": 2},
        "eval": {"data": {"source": str(folder / "tasks.jsonl"), "prompt": "question", "limit": 10, "shuffle": False}, "every": steps // 2},
        "tracking": {"save_every": steps // 2},
    }
    for section, values in changes.items():
        table[section] = {**table[section], **values} if isinstance(values, dict) else values
    table["eval"] |= {"samples": 4, "pass_k": [1, 4], "greedy": True, "max_tokens": 8, "threshold": 0.8}
    return validate(table)


@pytest.fixture(scope="module", params=["tied", "untied"])
def run(request, tmp_path_factory):
    """A finished run: its configuration, summary, rows and folder."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_model(folder / "model", tied=request.param == "tied", layers=2, width=64)
    # The second run covers what the first leaves out: ZeRO-3, adapters, rollouts that run ahead, refilled groups.
    other = {
        "steps": 12,
        "rollout": {"num_workers": 1, "max_staleness": 1, "drop_no_signal": True},
        "learner": {"num_ranks": 1, "zero_stage": 3, "lora_rank": 8, "lr": 5e-2, "num_minibatches": 1},
        "algorithm": {"name": "grpo", "is_cap": 2.0},
    }
    config = run_file(folder, model, **({} if request.param == "tied" else other))
    summary = rlft.train(config, reward={low_bytes: 1.0, few: 0.5})
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return config, summary, rows, folder / "run"


def steps_of(rows):
    return [row for row in rows if "reward/mean" in row]


def test_the_policy_learns(run):
    config, summary, rows, _ = run
    rewards = [row["reward/mean"] for row in steps_of(rows)]
    assert len(rewards) == config.steps
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.05
    assert summary["eval_end"] > summary["eval_start"]


def test_every_publish_is_verified_to_1e_4(run):
    config, summary, rows, _ = run
    gaps = [row["publish/max_diff"] for row in steps_of(rows)]
    assert len(gaps) == config.steps and max(gaps) <= 1e-4
    assert summary["max publish/max_diff"] == max(gaps)


def test_the_first_minibatch_starts_at_ratio_1_and_the_engine_agrees_with_the_learner(run):
    config, _, rows, _ = run
    assert max(row["ratio/first_max_dev"] for row in steps_of(rows)) <= 1e-5
    drifted = [row["kl/old"] for row in steps_of(rows)]
    assert min(drifted) > 1e-6 if config.learner.num_minibatches > 1 else max(drifted) <= 1e-9  # later minibatches are off-policy
    if config.rollout.max_staleness == 0:
        assert max(row["kl/rollout_abs_max"] for row in steps_of(rows)) <= 1e-4
    assert all(row["mismatch/ratio"] == pytest.approx(1, abs=0.3) for row in steps_of(rows))


def test_trained_tokens_are_the_sampled_ones_to_the_last(run):
    config, _, rows, folder = run
    stored = [record for path in sorted((folder / "rollouts").glob("step-*.parquet")) for record in read(path, None)]
    for row in steps_of(rows):
        mine = [record for record in stored if record["step"] == row["step"]]
        sampled = sum(sum(record["loss_mask"]) for record in mine)
        if not config.rollout.drop_no_signal:
            assert row["learner/num_trained_tokens"] == sampled == row["rollout/tokens_total"]
        assert sampled >= row["learner/num_trained_tokens"] > 0


def test_every_trajectory_is_stored_with_its_provenance(run):
    config, _, _, folder = run
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    eos = tokenizer.convert_tokens_to_ids(EOS)
    record = read(folder / "rollouts" / "step-000001.parquet", None)[0]
    prompt = [source == Source.PROMPT for source in record["sources"]]
    sampled = [source == Source.POLICY for source in record["sources"]]
    assert sampled == record["loss_mask"] and sum(prompt) + sum(sampled) == len(record["token_ids"])
    assert all(logprob < 0 for logprob, mine in zip(record["logprobs"], sampled, strict=True) if mine)
    assert tokenizer.decode(record["token_ids"]) == record["text"]
    parts = record["components"]
    assert record["reward"] == pytest.approx(parts["low_bytes"] + 0.5 * parts["few"])
    assert (record["status"] == "completed") == (record["token_ids"][-1] == eos)
    assert [message["role"] for message in record["messages"]] == ["user", "assistant"]
    assert (record["run"], record["model"], record["kind"], record["policy_version"]) == (config.run_dir, config.model, "step", 0)


def test_there_is_one_file_a_step_and_one_for_each_pass_of_an_evaluation(run):
    config, _, rows, folder = run
    measured = (0, config.steps // 2, config.steps)
    names = [f"step-{row['step']:06d}" for row in steps_of(rows)]
    names += [f"{kind}-{step:06d}" for kind in ("eval", "greedy") for step in measured]
    assert sorted(path.name for path in (folder / "rollouts").iterdir()) == sorted([".parts", *(f"{name}.parquet" for name in names)])
    workers = {record["worker"] for record in read(folder / "rollouts" / "step-000001.parquet")}
    assert workers == set(range(config.rollout.num_workers))


def test_the_samples_of_an_evaluation_are_those_of_its_figures(run):
    config, _, rows, folder = run
    for row in (row for row in rows if "eval/mean" in row):
        stored = read(folder / "rollouts" / f"eval-{row['step']:06d}.parquet")
        assert len(stored) == row["eval/num_samples"] == 4 * row["eval/num_tasks"]
        assert sum(record["outcome"] for record in stored) / len(stored) == pytest.approx(row["eval/mean"])
        assert {record["policy_version"] for record in stored} == {row["step"]}


def test_a_checkpoint_is_the_trained_policy_in_hugging_face_format(run):
    config, summary, _, folder = run
    saved = AutoModelForCausalLM.from_pretrained(summary["checkpoint"], dtype=torch.float32)
    start = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    saved_at = [f"step-{step:06d}" for step in (config.steps // 2, config.steps)]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == saved_at
    progress = json.loads((Path(summary["checkpoint"]) / "progress.json").read_text())
    drawn = config.steps * config.tasks_per_step
    assert progress["step"] == config.steps and progress["position"] >= drawn
    assert config.rollout.drop_no_signal or progress["position"] == drawn
    ids = AutoTokenizer.from_pretrained(summary["checkpoint"])("1+1=", return_tensors="pt")["input_ids"]
    chance = [m(ids).logits[0, -1].softmax(-1)[:130].sum().item() for m in (start, saved)]
    assert chance[1] > chance[0] + 0.05  # it samples what the reward pays for


def test_bad_rows_are_set_aside_and_named(run):
    *_, folder = run
    bad = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    assert {(row["row"], row["field"]) for row in bad} == {(41, "question"), (42, "")}


def test_a_run_leaves_its_resolved_file_its_plots_and_its_evaluations(run):
    config, summary, rows, folder = run
    assert rlft.load(folder / "config.toml") == config
    assert {path.stem for path in (folder / "plots").glob("*.png")} >= {"reward", "evaluation", "lengths", "timings"}
    evaluated = {row["step"]: row for row in rows if "eval/mean" in row}
    assert sorted(evaluated) == [0, config.steps // 2, config.steps]
    for row in evaluated.values():
        assert row["eval/low"] <= row["eval/mean"] <= row["eval/high"] and 0 <= row["eval/pass@4"] <= 1
    assert summary["eval_start"] == evaluated[0]["eval/mean"] and math.isfinite(summary["eval_end_greedy"])
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_the_time_of_a_step_is_accounted_for(run):
    *_, rows, _ = run
    for row in steps_of(rows):
        parts = [value for name, value in row.items() if name.startswith("time/") and name != "time/step_s"]
        assert sum(parts) == pytest.approx(row["time/step_s"]) and min(parts) > -1e-6


def test_rollouts_are_at_most_as_stale_as_allowed(run):
    config, _, rows, _ = run
    assert max(row["rollout/staleness"] for row in steps_of(rows)) == config.rollout.max_staleness


def test_ray_is_stopped_at_the_end(run):
    assert not ray.is_initialized()


def no_number(task, trajectory):
    return None


def test_a_reward_that_grades_nothing_stops_the_run_with_its_cause(tmp_path, tiny_model):
    config = run_file(tmp_path, tiny_model, rollout={"num_workers": 1})
    with pytest.raises(RewardError, match="40 of 40 (trajectories|samples) .*\n.*reward 'no_number' returned None; expected"):
        rlft.evaluate(config, reward=no_number)
