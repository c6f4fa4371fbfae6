"""A real model: the engine reports the probabilities that the learner computes, at any temperature; truncation is why it may not be set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("sampling_program.py")


@pytest.fixture(scope="module")
def results(smollm2):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run([sys.executable, str(PROGRAM), smollm2], env=environment, capture_output=True, text=True, timeout=550)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("RESULTS "))


@pytest.mark.parametrize("name", ["whole", "cooler"])
def test_engine_and_learner_agree_on_sampled_tokens_within_rounding(results, name):
    assert results[name]["tokens"] > 60
    assert results[name]["largest"] < 5e-4 and abs(results[name]["mean"]) < 5e-5


def test_a_truncated_engine_reports_larger_probabilities_than_the_learner_computes(results):
    assert results["truncated"]["mean"] > 0.03 > results["whole"]["mean"]
