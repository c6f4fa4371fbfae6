"""Actors of a Ray that a run starts run at the niceness of every other process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(200)]

PROGRAM = """
import os
import ray
from rlft.config import validate
from rlft.runs.start import Slot, ray_session, spawn

class Asked:
    def niceness(self):
        return os.nice(0)

if __name__ == "__main__":
    with ray_session(validate({"model": "m"}), None):
        print("niceness", ray.get(spawn(Asked, Slot(1, 0)).niceness.remote(), timeout=100))
"""


CASES = [({}, "niceness 0"), ({"RAY_worker_niceness": "7"}, "niceness 7")]  # the control: what one sets stays


@pytest.mark.parametrize(("given", "want"), CASES)
def test_actors_are_not_behind_other_processes(tmp_path, given, want):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    unset = {name: value for name, value in os.environ.items() if name not in ("RAY_worker_niceness", "RAY_ADDRESS")}
    environment = {**unset, **given, "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run([sys.executable, program], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert want in run.stdout.splitlines(), run.stderr[-2000:]
