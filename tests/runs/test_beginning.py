"""The start of a run is told from its first second on."""

import asyncio
import io
import subprocess
import sys

import pytest
from rich.console import Console

from rlft.config import validate
from rlft.report.folder import RunFolder
from rlft.report.screen import Screen
from rlft.report.tracking import Tracker
from rlft.runs.beginning import bring_up

FIRST = """
import sys, time
import rlft.cli
from rlft.errors import RlftError
try:
    rlft.cli._read(sys.argv[1], None, "train")
except RlftError as error:
    print(time.process_time(), sorted({"torch", "transformers", "ray", "vllm", "numpy"} & set(sys.modules)))
"""


def test_the_first_line_comes_before_anything_large_is_loaded_and_within_a_second(tmp_path):
    run = tmp_path / "run.toml"
    run.write_text("model = 'runs/nowhere'\nrun_dir = 'runs/run'\nsteps = 1\n[data]\nsource = 'rlft.recipes.additions:additions'\n")
    ran = subprocess.run([sys.executable, "-c", FIRST, run], capture_output=True, text=True, timeout=60)
    first, *_, seen = ran.stdout.splitlines()
    assert first == f"rlft train {run}: runs/nowhere, results in runs/run"
    seconds, _, loaded = seen.partition(" ")
    assert float(seconds) < 1 and loaded == "[]", ran.stdout + ran.stderr


def tracker(folder):
    config, out = validate({"model": "m", "steps": 4}), io.StringIO()
    return Tracker(RunFolder.create(folder, config), config, screen=Screen(Console(file=out, width=200))), out


def test_actors_come_up_side_by_side_each_with_a_line_of_its_own(tmp_path):
    shown, out = tracker(tmp_path / "run")
    order = []

    async def main():
        engine = asyncio.Event()

        async def load():
            order.append("engine begins")
            await engine.wait()

        async def learn():
            order.append("learner begins")
            engine.set()
            return "chosen"

        return await bring_up(shown, {"engine 1 of 1 loads m": load(), "learner": learn()}, [asyncio.sleep(0, "beside")])

    assert asyncio.run(main()) == [None, "chosen", "beside"] and order == ["engine begins", "learner begins"]
    assert sorted(line.partition(":")[0] for line in out.getvalue().splitlines()) == ["engine 1 of 1 loads m", "learner"]
    assert set(shown.screen.seconds) == {"engine 1 of 1 loads m", "learner"}


def test_an_actor_that_cannot_start_ends_the_wait_for_the_others_and_is_not_told_as_ready(tmp_path):
    shown, out = tracker(tmp_path / "run")

    async def main():
        async def fail():
            raise KeyError("no such model")

        await bring_up(shown, {"engine": asyncio.get_running_loop().create_future(), "learner": fail()})

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert out.getvalue() == ""
