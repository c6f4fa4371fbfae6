"""Every kind of training for some steps on SmolLM2: what it should move, moves, and the model can still talk."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import rlft
from rlft.config import load
from rlft.recipes.sentences import demonstrations
from rlft.recipes.smollm2 import ENGLISH, perplexity_of

pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(900)]


def recipe(name, folder, model, *changes):
    return load(name, [f"model={model}", f"run_dir={folder / 'run'}", "tracking.save_state=false", *changes])


def grpo(folder, model, *changes, name="sentences"):
    """The recipe for two steps of eight short answers, without an evaluation. Returns its steps and its checkpoint."""
    short = ["steps=2", "tasks_per_step=2", "rollout.group_size=4", "rollout.max_tokens=16", "eval={}"]
    summary = rlft.train(recipe(name, folder, model, *short, *changes))
    return steps_of(folder), summary["checkpoint"]


def steps_of(folder):
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "grad/norm" in row]


def talks(checkpoint):
    """Whether it still knows English: 22.8 before."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return perplexity_of(model, AutoTokenizer.from_pretrained(checkpoint), ENGLISH) < 30


def pairs(folder, count=32):
    """A run file's `data` of sentences that keep the rules, preferred to the same words in another order."""
    rows = [{**row, "chosen": row["answer"], "rejected": " ".join(sorted(row["answer"].split()))} for row in demonstrations(count=count)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data={{source={json.dumps(str(folder / 'pairs.jsonl'))}}}"


def test_sft_learns_the_demonstrations(tmp_path, smollm2):
    summary = rlft.sft(recipe("sentences_sft", tmp_path, smollm2, "steps=4", "tasks_per_step=8"))
    losses = [row["sft/cross_entropy"] for row in steps_of(tmp_path)]
    assert losses[-1] < losses[0] - 0.3
    assert talks(summary["checkpoint"])


def test_dpo_prefers_what_was_chosen(tmp_path, smollm2):
    changes = [pairs(tmp_path), "steps=3", "tasks_per_step=4", 'algorithm={name="dpo", beta=0.1}', "learner.lr=5e-6"]
    summary = rlft.dpo(recipe("sentences_sft", tmp_path, smollm2, *changes))
    steps = steps_of(tmp_path)
    assert steps[0]["loss/policy"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[-1]["preference/margin"] > steps[0]["preference/margin"] + 0.1
    assert talks(summary["checkpoint"])


def test_a_reward_model_tells_sentences_from_shuffled_words_and_serves_as_a_reward(tmp_path, smollm2):
    changes = [pairs(tmp_path), "steps=6", "tasks_per_step=8", "learner.lr=3e-5"]
    summary = rlft.train_rm(recipe("sentences_sft", tmp_path, smollm2, *changes))
    assert AutoModelForSequenceClassification.from_pretrained(summary["checkpoint"]).config.num_labels == 1
    steps, _ = grpo(tmp_path / "policy", smollm2, f"reward={{reward_model={{weight=1.0, model={json.dumps(summary['checkpoint'])}}}}}")
    assert len(steps) == 2 and steps[0]["reward/std"] > 0


def test_a_judge_on_the_policy_and_one_on_an_engine_of_its_own_grade(tmp_path, smollm2):
    judge = "fn='judge', weight=1.0, abstained=0.5, max_tokens=8, scale=[1, 10]"
    own, other = f"own={{{judge}, model='policy'}}", f"other={{{judge}, model={json.dumps(smollm2)}}}"
    length = '"rlft.recipes.sentences:length"=1.0'
    steps, _ = grpo(tmp_path, smollm2, f"reward={{{own}, {other}, {length}}}", "reward_pool.timeout_s=300.0", "rollout.max_model_len=512")
    assert all(0 <= row[f"reward/{name}"] <= 1 for row in steps for name in ("own", "other"))
    assert all(row["rollout/ungraded"] == 0 for row in steps)


def test_ppo_trains_a_critic_beside_the_policy(tmp_path, smollm2):
    steps, checkpoint = grpo(tmp_path, smollm2, 'algorithm={name="ppo"}', "learner.lr=1e-6")
    assert all(math.isfinite(row["critic/loss"]) for row in steps)
    assert talks(checkpoint)


SCORE = """
stages = [
    { steps = 1, algorithm = { name = "score", stage = 1, kl_coef = 0.01 } },
    { steps = 1, algorithm = { name = "score", stage = 2, alpha = 2.0, kl_coef = 0.01 } },
]
tasks_per_step = 2
data = { source = "rlft.recipes.sentences:tasks", options = { split = "train" } }
env = { name = "attempts", message = "Again, please." }
reward = { "rlft.recipes.sentences:length" = 1.0, "rlft.recipes.sentences:topic" = 0.5 }
reward_pool = { per_turn = true }
rollout = { group_size = 4, max_turns = 2, max_tokens = 16, max_model_len = 128, memory = 1.0 }
learner = { lr = 1e-6 }
"""


def test_score_goes_through_both_of_its_stages(tmp_path, smollm2):
    (tmp_path / "score.toml").write_text(SCORE)
    summary = rlft.train(recipe(tmp_path / "score.toml", tmp_path, smollm2))
    steps = steps_of(tmp_path)
    assert [row["stage"] for row in steps] == [0, 1] and all(row["rollout/turns"] > 1 for row in steps)
    assert talks(summary["checkpoint"])


def test_adapters_are_trained_and_saved_merged(tmp_path, smollm2):
    steps, checkpoint = grpo(tmp_path, smollm2, name="sentences_lora")
    assert all(row["grad/norm"] > 0 for row in steps)
    trained, start = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (checkpoint, smollm2))
    moved = {name for (name, one), other in zip(trained.named_parameters(), start.parameters(), strict=True) if not torch.equal(one, other)}
    assert moved and all("_proj" in name for name in moved)  # and nothing else


@pytest.mark.parametrize("name", ["sentences", "sentences_lora"])
def test_bfloat16_trains_and_publishes(tmp_path, smollm2, name):
    steps, checkpoint = grpo(tmp_path, smollm2, "learner.dtype=bfloat16", "rollout.dtype=bfloat16", name=name)
    assert len(steps) == 2 and all(math.isfinite(row["grad/norm"]) for row in steps)
    assert AutoModelForCausalLM.from_pretrained(checkpoint).dtype == torch.bfloat16
