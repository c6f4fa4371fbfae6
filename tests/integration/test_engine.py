"""One real vLLM engine: published weights are the ones that it samples from; tied and untied embeddings, tensor parallel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlft.recipes.starter import make_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("engine_program.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module", params=["tied", "untied", "tied, two workers"])
def results(request, tmp_path_factory):
    tied, workers = request.param.startswith("tied"), 1 + request.param.endswith("two workers")
    folder = make_model(tmp_path_factory.mktemp("engine") / "model", tied=tied, layers=2, width=64)
    command = [sys.executable, str(PROGRAM), str(folder), str(workers)]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=250)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    return {"tied": tied, **json.loads(lines[0].removeprefix("RESULTS "))}


def test_published_weights_agree_with_the_learner_in_every_tensor(results):
    for when in ("start", "published"):
        assert results[when]["gap"] <= 1e-4 and results[when]["error"] == ""
        sent, whole, columns, unread = results[when]["compared"]
        assert unread == 0 and whole + columns == sent + 1  # the head is compared in both its forms


def test_stale_weights_are_found_out(results):
    assert "does not hold the weights of version 1: 26 of 26" in results["stale"]["error"].replace("27", "26")


def test_a_tied_head_that_was_not_repacked_is_found_out(results):
    if results["tied"]:
        assert "model.embed_tokens.weight: lm_head computes with other numbers" in results["not repacked"]["error"]
    else:
        assert results["not repacked"]["gap"] <= 1e-4 and results["not repacked"]["error"] == ""


def test_after_a_publish_nothing_cached_under_the_old_weights_is_used(results):
    assert results["after"] <= 1e-4
    assert results["old prefix"] > 1e-2  # the control: new weights with the old prefix cache


def test_a_request_that_vllm_refuses_harms_no_other(results):
    refused, beside = results["refused"]
    assert "Error" in refused and beside == results["top_k"][0]


def test_completions_carry_the_version_they_began_under(results):
    assert results["versions"] == [0, 2]


def test_a_seed_decides_the_sample(results):
    first, again, other = results["seeded"]
    assert first == again != other


def test_what_a_seed_decides_does_not_depend_on_who_else_is_decoded(results):
    assert results["in a crowd"] == results["seeded"][0]
    first, second = results["unseeded"]
    assert first != second  # the control: without a seed there is nothing to repeat


def test_tokens_are_drawn_with_their_probabilities(results):
    own, flatter = results["p-values"]
    assert own > 1e-3 > flatter


def test_equal_prompts_of_a_block_and_more_are_computed_once(results):
    assert results["cached"] == [32, 0]  # the second is shorter than a block


def test_a_truncated_samples_logprobs_are_not_the_whole_distributions(results):
    got, whole = results["truncated"]
    assert sum(got) - sum(whole) > 0.1
    got, whole = results["tempered"]
    assert sum(got) - sum(whole) == pytest.approx(0, abs=1e-3)  # the control


def test_logprobs_are_those_of_the_tempered_distribution(results):
    got, want = results["tempered"]
    assert got == pytest.approx(want, abs=1e-4)


def test_an_answer_stops_where_the_context_ends(results):
    assert results["room"] == [[4, "length"], [1, "length"]]


def test_top_k_1_is_greedy_whatever_the_seed(results):
    assert len({tuple(ids) for ids in results["top_k"]}) == 1


def test_an_answer_ends_at_its_eos_or_at_its_limit(results):
    ended, all_at_eos = results["ended"]
    assert 0 < ended < 300 and all_at_eos and results["cut"]
