"""Judges on a real vLLM engine: what it writes, its limits, and many long prompts at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlft.recipes.starter import make_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).with_name("judge_engine_program.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("judge") / "model", layers=2, width=64)
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=250
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULTS "))


def test_an_engine_completes_as_the_model_does(results):
    ours, theirs = results["greedy"]
    assert ours == theirs and ours
    assert results["reply"] == [False, 14 + 6]  # cut at its limit; tokens of prompt and answer


def test_a_seed_decides_what_is_sampled(results):
    assert results["seeded"] == [True, False]


def test_a_prompt_that_fills_the_context_is_ungradable(results):
    assert "900 tokens leaves no room in its max_model_len 900; raise that of the judge" in results["too long"]


def test_more_prompts_than_fit_in_a_step_wait_their_turn(results):
    assert len(results["many"]) == 24 and all(1 <= count <= 2 for count in results["many"])


def test_a_model_that_cannot_judge_abstains(results):
    assert results["judged"] == [0.25, 0.25]
