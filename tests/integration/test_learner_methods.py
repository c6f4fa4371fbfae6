"""Every method on real DeepSpeed: a lone optimizer step needs no pass before it, and a step without signal moves nothing."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("learner_methods_program.py")
_spec = importlib.util.spec_from_file_location("learner_methods_program", PROGRAM)
program = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(program)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 128}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=96, **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w1", pad_token="w0").save_pretrained(folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = subprocess.run([sys.executable, PROGRAM, str(port), folder, folder], env=environment, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-4000:]
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.mark.parametrize("method", program.VARIANTS)
def test_the_gradient_of_a_lone_step_is_that_of_a_pass_before_it(results, method):
    (own, metrics), (passed, want) = results[f"method/{method}"]
    size = sum(float(x.double().square().sum()) for x in passed.values())
    apart = sum(float((own[name].double() - x.double()).square().sum()) for name, x in passed.items())
    assert metrics["learner/no_signal"] == 0 and size > 0 and (apart / size) ** 0.5 < 1e-5
    assert metrics.keys() == want.keys()
    for name in metrics.keys() - {name for name in want if name.startswith("time/")}:
        assert metrics[name] == pytest.approx(want[name], rel=1e-4, abs=2e-6), name


def test_what_compares_probabilities_is_measured_in_the_loss_too(results):
    metrics = results["method/grpo"][0][1]
    assert {"kl/rollout", "kl/rollout_abs_max", "mismatch/abs", "mismatch/prob", "ratio/mean", "kl/old"} <= metrics.keys()
    assert metrics["ratio/first_max_dev"] == 0.0 and metrics["ratio/mean"] == 1.0 and metrics["kl/rollout"] != 0.0
    assert results["two steps"]["kl/old"] > 1e-4  # the control: in a second step the policy has moved from what the pass saw


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("method", ["grpo", "nobody right", "dpo"])
def test_a_step_without_signal_leaves_every_weight_bit_for_bit(results, method, decay):
    metrics, moved = results[f"no signal/{decay}/{method}"]
    assert metrics["learner/no_signal"] == 1 and not moved
    assert "grad/norm" not in metrics and "loss/policy" not in metrics


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_where_a_term_stands_beside_the_advantages_the_step_is_made(results, decay):
    """Its gradient is next to nothing: what moves the weights is AdamW's momentum, as it moved them in the steps above."""
    metrics, moved = results[f"no signal/{decay}/kl"]
    assert metrics["learner/no_signal"] == 0 and moved


def test_schedules_go_on_over_a_step_without_signal(results):
    skipped, made = results["schedule"]
    assert skipped["learner/no_signal"] == 1 and made["learner/no_signal"] == 0
    assert made["learner/lr"] == pytest.approx(0.75e-2)
