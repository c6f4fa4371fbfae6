"""Reward models on real DeepSpeed: exact gradients for every stage, number of ranks and budget; and one whole run."""

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import rlft
from rlft.config import validate
from rlft.rewards.grader import spoken
from rlft.rewards.learned.reward_model import RewardModel
from rlft.types import Group, Task

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("reward_model_program.py")
_spec = importlib.util.spec_from_file_location("reward_model_program", PROGRAM)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_model):
    """A reward model with a known head, so that the oracle starts where the ranks do."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(5)
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def runs(base, tmp_path_factory):
    """{number of ranks: (results of every rank, folder)}; the one-rank and the two-rank job run side by side."""
    settings = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    started, folders = [], {}
    for world_size in (1, 2):
        folders[world_size], port = tmp_path_factory.mktemp(f"ranks{world_size}"), free_port()
        for rank in range(world_size):
            command = [sys.executable, str(PROGRAM), *map(str, (rank, world_size, port, base, folders[world_size]))]
            log = folders[world_size] / f"rank{rank}.log"
            with log.open("w") as out:
                started.append((log, subprocess.Popen(command, env={**os.environ, **settings}, stdout=out, stderr=subprocess.STDOUT)))
    try:
        for log, process in started:
            assert process.wait(timeout=500) == 0, log.read_text()[-4000:]
    finally:
        for _, process in started:
            process.kill()
            process.wait()
    return {n: ([torch.load(f / f"rank{rank}.pt", weights_only=False) for rank in range(n)], f) for n, f in folders.items()}


def oracle(base, margins=True):
    """Gradient and loss of the mean over all pairs: float64, one sequence at a time, without padding."""
    lm = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float64)
    loss = 0.0
    for pair in program.make_pairs():
        chosen, rejected = (lm(input_ids=torch.from_numpy(ids).long()[None]).logits[0, 0] for ids in (pair.chosen, pair.rejected))
        loss = loss + torch.nn.functional.softplus(rejected - chosen + (pair.margin if margins else 0.0)) / 9
    loss.backward()
    return {name: p.grad for name, p in lm.named_parameters()}, float(loss)


@pytest.fixture(scope="module")
def exact(base):
    return oracle(base)


def relative_error(got, want):
    difference = sum(float((got[name].double() - want[name]).square().sum()) for name in want)
    return (difference / sum(float(x.square().sum()) for x in want.values())) ** 0.5


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", program.STAGES)
@pytest.mark.parametrize("budget", program.BUDGETS)
def test_the_gradient_is_exact_for_every_stage_number_of_ranks_and_budget(runs, exact, world_size, stage, budget):
    want, loss = exact
    for result in runs[world_size][0]:
        for layout in ("uneven", "alone")[:world_size]:  # "alone": the second rank has no pair at all
            got, metrics = result[f"gradient/{stage}/{budget}/{layout}"]
            assert relative_error(got, want) < 1e-5
            assert metrics["loss/preference"] == pytest.approx(loss, rel=1e-5)


def test_without_margins_it_is_another_gradient(base, exact):
    assert relative_error(oracle(base, margins=False)[0], exact[0]) > 0.02


def test_the_small_budget_makes_ranks_run_empty_micro_batches(runs):
    first, second = (result["num_micro_batches"] for result in runs[2][0])
    assert first[0] > second[0] >= 1 and first[1] == second[1] == 1


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", program.STAGES)
def test_scores_are_those_of_each_sequence_alone_and_bad_losses_stop_the_run(runs, base, world_size, stage):
    lm = AutoModelForSequenceClassification.from_pretrained(base)
    for rank, result in enumerate(runs[world_size][0]):
        mine = program.share(rank, world_size, "uneven")
        want = [[lm(input_ids=torch.from_numpy(ids).long()[None]).logits.item() for ids in (p.chosen, p.rejected)] for p in mine]
        assert result[f"scores/{stage}"] == pytest.approx(torch.tensor(want).numpy(), abs=1e-5)
        assert result[f"skipped/{stage}"] == 1 and "2 optimizer steps in a row" in result[f"stopped/{stage}"]


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_saved_reward_model_is_the_one_that_was_trained(runs, world_size, kind):
    results, folder = runs[world_size]
    lm, info = AutoModelForSequenceClassification.from_pretrained(folder / kind, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert lm.config.architectures == ["Qwen2ForSequenceClassification"] and lm.config.num_labels == 1
    assert AutoTokenizer.from_pretrained(folder / kind).chat_template == ("{{ messages }}" if kind == "lora" else None)
    for rank, result in enumerate(results):
        losses, scores = result[f"trained/{kind}"]
        assert losses[-1] < 0.5 * losses[0]
        for pair, row in zip(program.share(rank, world_size, "uneven"), scores, strict=True):
            again = [lm(input_ids=torch.from_numpy(ids).long()[None]).logits.item() for ids in (pair.chosen, pair.rejected)]
            assert again == pytest.approx(row.tolist(), abs=1e-4)


def test_a_run_learns_its_pairs_reports_on_them_and_serves_as_a_reward(tmp_path, tiny_model):
    rows = [{"prompt": f"{n}? ", "chosen": "yes" + "!" * (n % 5), "rejected": "no" + "!" * (n % 3)} for n in range(60)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"prompt": "?", "chosen": "x"}]))
    data = {"source": str(tmp_path / "pairs.jsonl")}
    table = {
        "model": tiny_model,
        "steps": 8,
        "tasks_per_step": 16,
        "run_dir": str(tmp_path / "run"),
        "data": data,
        "learner": {"num_ranks": 2, "lr": 3e-3, "max_tokens_per_micro_batch": 256},
        "eval": {"data": {**data, "limit": 30, "shuffle": False}, "every": 4},
    }
    summary = rlft.train_rm(validate(table))
    recorded = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in recorded if "loss/preference" in row] == list(range(1, 9))
    assert [row["step"] for row in recorded if "eval/mean" in row] == [0, 4, 8]
    assert summary["eval_end"] == 1.0 and summary["eval_end_loss"] < summary["eval_start_loss"]
    assert sum(b["num_pairs"] for b in summary["reliability"]) == 30
    assert json.loads((tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()[0])["field"] == "rejected"
    assert (tmp_path / "run" / "plots" / "preferences.png").is_file()

    async def serve():
        scorer = RewardModel(model=summary["checkpoint"])
        await scorer.start()
        task = Task("1", ({"role": "user", "content": "99? "},))
        scores = await scorer.score(Group("g", (spoken(task, "yes!"), spoken(task, "no!"))))
        await scorer.close()
        return scores

    right, wrong = asyncio.run(serve())
    assert right > wrong
