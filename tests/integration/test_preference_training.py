"""Training on given pairs with real learner ranks: it starts at log 2, the margin grows, and the checkpoint prefers what was chosen."""

import json
import math
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlft
from rlft.config import validate
from rlft.errors import ConfigError

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PAIRS = [{"prompt": f"{n}? ", "chosen": "yes" + "!" * (n % 4), "rejected": "no" + "!" * (n % 3), "stars": 1 + n % 2} for n in range(16)]


def run_file(folder, model, algorithm, **changes):
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*PAIRS, {"prompt": "?", "chosen": "x"}])))
    data = {"source": str(folder / "pairs.jsonl")}
    learner = {"lr": 1e-3, "max_tokens_per_micro_batch": 60, **changes.pop("learner", {})}
    table = {"model": model, "steps": 6, "tasks_per_step": 8, "run_dir": str(folder / algorithm["name"]), "data": data, "learner": learner}
    return validate({**table, "algorithm": algorithm, **changes})


def steps_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def log_ratio(model, reference, tokenizer, prompt, answer):
    """Of an answer with its EOS, one sequence at a time."""
    ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
    ids = torch.cat([ids, torch.tensor([[tokenizer.eos_token_id]])], -1)
    start = len(tokenizer(prompt)["input_ids"])
    total = 0.0
    for lm, sign in ((model, 1), (reference, -1)):
        logprobs = lm(ids).logits[0].log_softmax(-1)
        total += sign * sum(float(logprobs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    return total


def test_dpo_starts_at_log_2_and_moves_the_policy_to_what_was_chosen(tmp_path, tiny_model):
    config = run_file(tmp_path, tiny_model, {"name": "dpo", "beta": 0.5, "suffix": True}, learner={"num_ranks": 2})
    summary = rlft.dpo(config)
    steps = steps_of(tmp_path / "dpo")
    assert steps[0]["loss/policy"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(steps[0]["preference/margin"]) < 1e-5
    assert all(later["preference/margin"] > sooner["preference/margin"] for sooner, later in pairwise(steps))
    assert steps[-1]["preference/accuracy"] == 1.0 and steps[-1]["loss/policy"] < 0.5
    assert json.loads((tmp_path / "dpo" / "quarantine.jsonl").read_text())["field"] == "rejected"

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trained, reference = (AutoModelForCausalLM.from_pretrained(folder) for folder in (summary["checkpoint"], tiny_model))
    with torch.no_grad():
        leads = [
            log_ratio(trained, reference, tokenizer, pair["prompt"], pair["chosen"])
            - log_ratio(trained, reference, tokenizer, pair["prompt"], pair["rejected"])
            for pair in PAIRS
        ]
    assert min(leads) > steps[1]["preference/margin"] > 0
    progress = json.loads((tmp_path / "dpo" / "checkpoints" / "step-000006" / "progress.json").read_text())
    assert progress == {"step": 6, "position": 48}


def test_kto_with_adapters_learns_from_the_same_pairs_and_their_margins_are_refused(tmp_path, tiny_model):
    algorithm, learner = {"name": "kto", "beta": 0.5}, {"lora_rank": 4, "lr": 1e-2}
    with pytest.raises(ConfigError, match="margin_coef"):
        rlft.dpo(run_file(tmp_path, tiny_model, algorithm, learner=learner, preferences={"margin": "stars"}))
    rlft.dpo(run_file(tmp_path, tiny_model, algorithm, learner=learner, steps=4))
    steps = steps_of(tmp_path / "kto")
    assert steps[0]["loss/policy"] == pytest.approx(0.5, abs=1e-5) and abs(steps[0]["preference/anchor"]) < 1e-5
    assert steps[-1]["loss/policy"] < steps[0]["loss/policy"] and steps[-1]["preference/margin"] > 0
