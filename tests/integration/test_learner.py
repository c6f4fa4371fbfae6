"""The learner on real DeepSpeed: no ZeRO stage, number of ranks, micro-batch budget or offload changes the result."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from rlft.actors.weights.buckets import unpack
from rlft.actors.weights.receipt import received_wrong
from rlft.learner.rows import pack_rows
from rlft.types import Setting, Source

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("learner_rank_program.py")
_spec = importlib.util.spec_from_file_location("learner_rank_program", PROGRAM)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}


def _keys(engines):
    return [f"{stage}{'-offload' if offload else ''}" for stage, offload in engines]


CASES = [
    (head, engine, world_size)
    for head, engines in (("tied", program.ENGINES), ("untied", program.UNTIED_ENGINES))
    for engine in _keys(engines)
    for world_size in (1, 2)
]
every_case = pytest.mark.parametrize(("head", "engine", "world_size"), CASES)
SAVED_REFERENCE_RUNS = [(f"{kind}{stage}", f"{kind}-probe/{stage}") for kind in ("full", "lora") for stage in (2, 3)]
every_head = pytest.mark.parametrize("head", ["tied", "untied"])


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    """{"tied": folder, "untied": folder} of two random models that differ in their output head only."""
    folders = {}
    for head in ("tied", "untied"):
        folders[head] = folder = tmp_path_factory.mktemp(head)
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
        Qwen2ForCausalLM(Qwen2Config(vocab_size=96, tie_word_embeddings=head == "tied", **sizes)).save_pretrained(folder)
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0").save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def runs(model_folders, tmp_path_factory):
    """{number of ranks: (results of every rank, folder)}; the one-rank and the two-rank job run side by side."""
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[2])}
    started = []
    for world_size in (1, 2):
        folder, port = tmp_path_factory.mktemp(f"ranks{world_size}"), _free_port()
        for rank in range(world_size):
            arguments = [rank, world_size, port, model_folders["tied"], model_folders["untied"], folder]
            command = [sys.executable, str(PROGRAM), *map(str, arguments)]
            log = (folder / f"rank{rank}.log").open("w")
            started.append((world_size, rank, folder, subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)))
    try:
        for _, rank, folder, process in started:
            assert process.wait(timeout=500) == 0, (folder / f"rank{rank}.log").read_text()[-4000:]
    finally:
        for *_, process in started:
            process.kill()
            process.wait()
    results = {1: [], 2: []}
    for world_size, rank, folder, _ in started:
        results[world_size].append(torch.load(folder / f"rank{rank}.pt", weights_only=False))
    return {world_size: (results[world_size], folder) for world_size, rank, folder, _ in started if rank == 0}


def of_ranks(runs, world_size, head):
    return [result[head] for result in runs[world_size][0]]


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def oracle_loss(lm, aggregation="sequence"):
    """-A log p summed with each token's share, row by row, without padding: GRPO's loss gradient at ratio 1."""
    rows = program.make_rows()
    totals, trained = {}, {}
    for row in rows:
        key = (row.group_id, row.traj_id)
        totals[key] = totals.get(key, 0.0) + float(row.rewards.astype(np.float64).sum())
        trained[key] = trained.get(key, 0) + int((row.sources == Source.POLICY).sum())
    loss = 0.0
    for row in rows:
        group = np.array([total for (group_id, _), total in totals.items() if group_id == row.group_id])
        advantage = (totals[row.group_id, row.traj_id] - group.mean()) / (group.std() + 1e-6)
        ids = torch.from_numpy(row.token_ids.astype(np.int64))
        logprobs = lm(ids[None, :-1]).logits[0].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
        sampled = torch.from_numpy(row.sources[1:] == Source.POLICY)
        share = 1 / (trained[row.group_id, row.traj_id] * len(totals)) if aggregation == "sequence" else 1 / sum(trained.values())
        loss = loss - advantage * share * logprobs[sampled].sum()
    return loss


def oracle_gradient(model, aggregation="sequence"):
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    oracle_loss(lm, aggregation).backward()
    return {name: p.grad for name, p in lm.named_parameters()}


def relative_error(got, want):
    difference = sum(float((got[name].double() - want[name]).square().sum()) for name in want)
    return (difference / sum(float(x.square().sum()) for x in want.values())) ** 0.5


@pytest.fixture(scope="module")
def gradients(model_folders):
    return {head: oracle_gradient(folder) for head, folder in model_folders.items()}


@every_case
@pytest.mark.parametrize("budget", program.BUDGETS)
def test_the_gradient_is_exact_for_every_stage_number_of_ranks_and_budget(runs, gradients, head, engine, world_size, budget):
    norm = sum(float(x.square().sum()) for x in gradients[head].values()) ** 0.5
    for result in of_ranks(runs, world_size, head):
        for layout in ("uneven", "alone")[:world_size]:  # "alone": the second rank has no rows at all
            got, metrics = result[f"gradient/{engine}/{layout}/{budget}"]
            assert relative_error(got, gradients[head]) < 1e-5
            assert metrics["grad/norm"] == pytest.approx(norm, rel=1e-5)
            assert metrics["ratio/first_max_dev"] < 1e-5


def test_another_share_of_the_loss_is_another_gradient(model_folders, gradients):
    assert relative_error(oracle_gradient(model_folders["tied"], "token"), gradients["tied"]) > 0.05


def test_the_budgets_make_ranks_run_empty_micro_batches(runs):
    first, second = (result["num_micro_batches"] for result in of_ranks(runs, 2, "tied"))
    assert first[0] > second[0] > 1 and first[1] > second[1]
    assert first[-1] == second[-1] == 1


@pytest.fixture(scope="module")
def stepped(model_folders):
    """Per head: the model and its gradient norms after three steps of plain torch."""
    return {head: _three_steps(folder) for head, folder in model_folders.items()}


def _three_steps(folder):
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    options = program.STEP
    decayed, free = ([p for p in lm.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))  # norms and biases are spared
    groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options["lr"], betas=options["betas"])
    norms = []
    for factor in (1.0, 0.75, 0.5):
        optimizer.zero_grad()
        oracle_loss(lm).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(lm.parameters(), options["grad_clip"])))
        for group in optimizer.param_groups:
            group["lr"] = options["lr"] * factor
        optimizer.step()
    return lm, norms


@every_case
def test_three_clipped_steps_equal_plain_adamw(runs, stepped, head, engine, world_size):
    lm, norms = stepped[head]
    for result in of_ranks(runs, world_size, head):
        weights, metrics = result[f"step/{engine}"]
        assert list(weights) == [name for name, _ in lm.named_parameters()]
        for name, want in lm.named_parameters():
            if not name.endswith("k_proj.bias"):  # its gradient is exactly zero in theory, so Adam normalises rounding noise
                torch.testing.assert_close(weights[name], want.detach(), atol=2e-4, rtol=0)
        assert [m["grad/norm"] for m in metrics] == pytest.approx(norms, rel=1e-3)
        assert [m["learner/lr"] for m in metrics] == pytest.approx([1e-2, 0.75e-2, 0.5e-2])


@every_case
@pytest.mark.parametrize("poison", program.POISONS)
def test_a_loss_that_is_not_finite_on_one_rank_changes_no_weight_and_leaves_no_gradient_behind(
    runs, gradients, head, engine, world_size, poison
):
    for result in of_ranks(runs, world_size, head):
        num_skipped, unchanged = result[f"skip/{engine}/{poison}"]
        assert num_skipped == 1 and unchanged
        assert relative_error(result[f"after_skip/{engine}/{poison}"], gradients[head]) < 1e-5


@every_case
def test_too_many_bad_steps_in_a_row_stop_every_rank_with_a_dump(runs, head, engine, world_size):
    folder = runs[world_size][1] / head / f"dump{engine}"
    for rank, result in enumerate(of_ranks(runs, world_size, head)):
        assert "not finite in 2 optimizer steps in a row" in result[f"stop/{engine}"]
        report = json.loads((folder / f"non_finite_rank{rank}.json").read_text())
        mine = program.share(rank, world_size)
        assert [row["group_id"] for row in report["rows"]] == [row.group_id for row in mine]
        assert all((row["loss"] == "nan") == (rank == 0) for row in report["minibatch"])
        streams = load_file(folder / f"non_finite_rank{rank}.safetensors")
        assert streams["token_ids"].shape == streams["loss"].shape == streams["advantages"].shape


@every_head
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("saved", "probe"), [("saved2", "probe/2"), ("saved3", "probe/3"), *SAVED_REFERENCE_RUNS])
def test_a_saved_folder_is_the_model_that_was_probed(runs, head, world_size, saved, probe):
    folder = runs[world_size][1] / head
    lm, info = AutoModelForCausalLM.from_pretrained(folder / saved, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder / saved).eos_token == "w1"
    assert not list(folder.glob(".*partial"))
    for result in of_ranks(runs, world_size, head):
        for sequence, logprobs in zip(program.PROBE, result[probe], strict=True):
            ids = torch.tensor(sequence)
            want = lm(ids[None, :-1]).logits[0].log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]
            assert logprobs == pytest.approx(want.tolist(), abs=2e-5)


@every_head
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_reference_stays_the_initial_policy(runs, head, kind):
    courses = [result[f"{kind}/{stage}"] for world_size in (1, 2) for result in of_ranks(runs, world_size, head) for stage in (2, 3)]
    for course in courses:
        assert course[0]["kl/ref"] == 0.0 and course[0]["ratio/first_max_dev"] < 1e-5
        assert course[1]["kl/ref"] > 1e-3 and course[2]["kl/ref"] > course[1]["kl/ref"]
        assert [m["kl/ref"] for m in course] == pytest.approx([m["kl/ref"] for m in courses[0]], rel=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_epochs_and_minibatches_start_on_policy_and_then_move(runs, world_size):
    metrics = of_ranks(runs, world_size, "tied")[0]["minibatches"]
    assert metrics["ratio/first_max_dev"] < 1e-5 and metrics["kl/old"] > 1e-4
    trained = sum(int((row.sources == Source.POLICY).sum()) for row in program.make_rows())
    assert metrics["learner/num_trained_tokens"] == 2 * trained


def test_metrics_are_the_same_on_every_rank(runs):
    first, second = (result["gradient/2/uneven/96"][1] for result in of_ranks(runs, 2, "tied"))
    assert first == second
    assert {"loss/policy", "policy/entropy", "kl/rollout", "kl/rollout_abs_max", "learner/lr", "time/learner_backward_s"} <= first.keys()


@pytest.fixture
def ray_actor(model_folders):
    """A one-rank learner as a Ray actor."""
    import ray

    from rlft.actors.learner_rank import LearnerRank

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    environment = {**ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[2])}
    actor = ray.remote(LearnerRank).options(num_cpus=1, runtime_env={"env_vars": environment})
    config = program.LearnerConfig(lr=1e-2)
    yield actor.remote(config, str(model_folders["tied"]), master_port=_free_port())
    ray.shutdown()


def test_in_ray_rows_come_by_reference_and_weights_leave_by_reference(ray_actor, model_folders):
    import ray

    groups = {}
    for row in program.make_rows():
        groups.setdefault(row.group_id, []).append(row)
    references = [ray.put(pack_rows(rows)) for rows in groups.values()]
    metrics = ray.get(ray_actor.update.remote(program.grpo(), Setting(), *references), timeout=200)
    trained = sum(int((row.sources == Source.POLICY).sum()) for row in program.make_rows())
    assert metrics["learner/num_trained_tokens"] == trained
    references = ray.get(ray_actor.export_weights.remote(1, bucket_bytes=50_000), timeout=60)
    [probe] = ray.get(ray_actor.probe_logprobs.remote([[3, 5, 7, 11]]), timeout=60)
    receipt, *packed = ray.get(references, timeout=60)
    assert received_wrong(receipt, (item for bucket in packed for item in unpack(bucket))) == {}
    buckets = [dict(unpack(bucket)) for bucket in packed]
    assert len(buckets) > 1
    lm = AutoModelForCausalLM.from_pretrained(model_folders["tied"], dtype=torch.float32)
    before = lm(torch.tensor([[3, 5, 7]])).logits.log_softmax(-1)
    exported = {name: tensor for bucket in buckets for name, tensor in bucket.items()}
    assert list(exported) == [name for name, _ in lm.named_parameters()]
    lm.load_state_dict(exported, strict=False)
    after = lm(torch.tensor([[3, 5, 7]])).logits.log_softmax(-1)
    want = [after[0, t, token].item() for t, token in enumerate([5, 7, 11])]
    assert probe == pytest.approx(want, abs=1e-5)
    assert probe != pytest.approx([before[0, t, token].item() for t, token in enumerate([5, 7, 11])], abs=1e-2)


CRITIC_CASES = [(stage, kind) for stage in (0, 2, 3) for kind in program.CRITICS]
every_critic = pytest.mark.parametrize(("stage", "kind"), CRITIC_CASES)


def series(steps, name):
    return [metrics[name] for metrics in steps]


@every_critic
def test_a_critic_learns_the_same_on_every_stage_number_of_ranks_and_budget(runs, stage, kind):
    for name in ("critic/loss", "critic/explained_variance", "loss/policy", "kl/old"):
        got = {
            (world_size, budget): series(of_ranks(runs, world_size, "tied")[0][f"critic/{stage}/{kind}/{budget}"][0], name)
            for world_size in (1, 2)
            for budget in ((32, 4096) if stage == 2 else (4096,))
        }
        want = of_ranks(runs, 1, "tied")[0][f"critic/2/{kind}/4096"][0]
        for values in got.values():
            assert values == pytest.approx(series(want, name), rel=2e-3, abs=2e-5), name


def test_a_critics_first_loss_is_that_of_values_of_zero_and_then_falls(runs):
    """The head starts at 0, so the first loss is the mean square of the returns over trained tokens, halved."""
    totals = {}
    for row in program.make_rows():
        totals.setdefault((row.group_id, row.traj_id), []).append(row)
    squares, tokens = 0.0, 0
    for rows in totals.values():
        for place, row in enumerate(rows):
            # lambda 0.95 with values of 0: the return of a token is the reward discounted by 0.95 per later policy token
            rewards = [(float(r), i) for i, r in enumerate(rows[0].rewards) if r]
            for i, source in enumerate(row.sources):
                if source != Source.POLICY or (place == 0 and i == 0):
                    continue
                value = 0.0
                for r, at in rewards:
                    if place == 0 and at >= i:
                        value += r * 0.95 ** int((row.sources[i + 1 : at + 1] == Source.POLICY).sum())
                squares, tokens = squares + value**2, tokens + 1
    steps, moved = of_ranks(runs, 1, "tied")[0]["critic/2/separate/4096"]
    assert steps[0]["critic/loss"] == pytest.approx(squares / tokens / 2, rel=1e-4)
    assert steps[0]["critic/explained_variance"] == pytest.approx(0.0, abs=1e-9)
    assert steps[-1]["critic/loss"] < steps[0]["critic/loss"] and steps[-1]["critic/explained_variance"] > 0
    assert moved


def test_while_the_critic_warms_up_the_policy_keeps_its_weights(runs):
    for world_size in (1, 2):
        for result in of_ranks(runs, world_size, "tied"):
            warming, kept = result["warming"]
            assert kept and warming[1]["critic/loss"] < warming[0]["critic/loss"] and "loss/policy" not in warming[0]
            warm, kept = result["warm"]
            assert not kept and "loss/policy" in warm[0]


@pytest.mark.parametrize("world_size", [1, 2])
def test_weight_decay_does_not_move_a_body_that_waits_for_its_critic(runs, world_size):
    assert of_ranks(runs, world_size, "tied")[0]["held"] == [True, False]  # the control: the warm-up over, it moves


def test_a_critic_that_comes_back_without_its_state_warms_up_again(runs):
    assert "loss/policy" not in of_ranks(runs, 1, "tied")[0]["started"]
    assert "loss/policy" in of_ranks(runs, 1, "tied")[0]["restarted"]  # the control: it asks for no warm-up


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_healthy_critic_does_not_hide_a_policy_that_is_not_finite(runs, world_size):
    first, *stopped = of_ranks(runs, world_size, "tied")[0]["spoiled"]
    assert first["learner/num_skipped"] == 1 and first["critic/loss"] > 0
    assert len(stopped) == 1 and "2 optimizer steps in a row (grad/norm)" in stopped[0]


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_critics_own_passes_teach_it_more_and_leave_the_policys_step_alone(runs, world_size):
    once, passes = (of_ranks(runs, world_size, "tied")[0][key] for key in ("critic_once", "critic_passes"))
    for name in ("loss/policy", "grad/norm", "learner/num_trained_tokens"):  # in the first update the advantages are the same
        assert passes[0][name] == pytest.approx(once[0][name], rel=1e-6)
    assert passes[1]["critic/explained_variance"] > once[1]["critic/explained_variance"] + 0.05


@every_critic
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_resumed_learner_goes_on_as_if_it_had_never_stopped(runs, stage, kind, world_size):
    result = of_ranks(runs, world_size, "tied")[0]
    went_on, resumed = result[f"resumed/{stage}/{kind}"]
    names = ("critic/loss", "critic/explained_variance", "loss/policy", "grad/norm", "learner/lr")
    for name in names:
        assert resumed[name] == pytest.approx(went_on[name], rel=1e-4, abs=1e-7), name
    assert result["restarted"]["critic/loss"] != pytest.approx(went_on["critic/loss"], rel=1e-2)  # its head is 0 again
