"""SmolLM2 through a whole run: GRPO, saved, resumed from what was saved, and able to talk after that."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import rlft
from rlft.config import validate
from rlft.recipes.smollm2 import GREEDY, greedy

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]


def vowels(task, trajectory):
    """Share of vowels in what was said: every group has a spread."""
    text = trajectory.text.lower()
    return sum(char in "aeiou" for char in text) / max(1, len(text))


def right(task, trajectory):
    return float(trajectory.text == task.answer)


def run_file(folder, model):
    (folder / "tasks.jsonl").write_text("".join(json.dumps({"prompt": f"What is {thing}?"}) + "\n" for thing in ("bread", "a river")))
    (folder / "chat.jsonl").write_text(json.dumps({"prompt": GREEDY[0], "answer": "The capital of France is Paris."}))
    return validate(
        {
            "model": model,
            "steps": 2,
            "tasks_per_step": 2,
            "run_dir": str(folder / "run"),
            "data": {"source": str(folder / "tasks.jsonl"), "answer": ""},
            "reward": {f"{__name__}:vowels": 1.0, f"{__name__}:right": 0.0},
            "rollout": {"group_size": 4, "max_tokens": 10, "max_model_len": 64, "max_num_seqs": 16, "memory": 0.5},
            "learner": {"lr": 1e-7},  # its first token for France has a lead of 0.08 nats, which 1e-6 turns around in two steps
            "eval": {"samples": 1, "greedy": True, "max_tokens": 10, "metric": "right", "data": {"source": str(folder / "chat.jsonl")}},
        }
    )


@pytest.fixture(scope="module")
def run(smollm2, tmp_path_factory):
    """The folder of a run of two steps that went on for a third from its checkpoint, and what the summary said each time."""
    folder = tmp_path_factory.mktemp("real")
    config = run_file(folder, smollm2)
    first = rlft.train(config)
    second = rlft.train(config.model_copy(update={"steps": 3}), resume=True)
    return folder / "run", first, second


def test_it_trains_publishes_and_goes_on_from_its_checkpoint(run):
    folder, _, _ = run
    steps = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "reward/mean" in row]
    assert [row["step"] for row in steps] == [1, 2, 3]
    assert all(row["learner/num_trained_tokens"] > 0 and row["grad/norm"] > 0 for row in steps)


def test_the_checkpoint_differs_from_the_start_by_small_steps_and_has_all_that_a_model_folder_needs(run, smollm2):
    _, first, second = run
    before, middle, after = (load_file(Path(path) / "model.safetensors") for path in (smollm2, first["checkpoint"], second["checkpoint"]))
    assert before.keys() == middle.keys() == after.keys()
    for one, other in ((before, middle), (middle, after)):
        assert 0 < max((one[name] - other[name]).abs().max().item() for name in one) < 1e-5
    saved, made = (AutoTokenizer.from_pretrained(path) for path in (second["checkpoint"], smollm2))
    assert saved.chat_template == made.chat_template and saved.get_vocab() == made.get_vocab()


def test_it_still_talks_in_the_engine_and_in_transformers(run):
    _, first, second = run
    ends = [summary[f"eval_{end}_greedy"] for summary in (first, second) for end in ("start", "end")]
    assert ends == [1.0] * 4  # in the first run's engine, and in one that was loaded from its checkpoint
    model = AutoModelForCausalLM.from_pretrained(second["checkpoint"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(second["checkpoint"])
    assert greedy(model, tokenizer, GREEDY[0]) == GREEDY[1]
    assert greedy(model, tokenizer, "What is bread?") != GREEDY[1]
