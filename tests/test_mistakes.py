"""The mistakes of the first half hour, made on the command line: each is told with what to do, and leaves nothing behind."""

import json
import re
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import mistakes
import pytest
from mistakes import MISTAKES, lay, left

from rlft import cli
from rlft.runs import beginning

WITHOUT_TORCH = [mistake for mistake in MISTAKES if not mistake.torch]
WITH_TORCH = [mistake for mistake in MISTAKES if mistake.torch]


class Started(Exception):
    """The run passed every check and would start Ray now."""


@pytest.fixture(scope="module")
def found(tmp_path_factory, tiny_model):
    """What came of every mistake that needs no torch, by its name."""
    command = [sys.executable, mistakes.__file__, str(tmp_path_factory.mktemp("mistakes")), tiny_model]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout.splitlines()[-1])}


def unboxed(text):
    """A usage error stands in a box, whose lines are joined again."""
    return " ".join(line.strip("│╭╮╰╯─ ") for line in text.splitlines())


@pytest.mark.parametrize("mistake", WITHOUT_TORCH, ids=lambda mistake: mistake.name)
def test_a_mistake_is_told_with_what_to_do_before_torch_is_loaded_and_leaves_nothing_behind(found, mistake):
    one = found[mistake.name]
    said = one["said"] if mistake.exit == 1 else unboxed(one["said"])
    assert re.search(mistake.told, said), said
    assert "Traceback" not in said
    assert (one["exit"], one["torch"], one["added"], one["running"]) == (mistake.exit, False, [], [])


@pytest.fixture
def no_ray(monkeypatch):
    @contextmanager
    def session(*_, **__):
        raise Started
        yield

    monkeypatch.setattr(beginning, "ray_session", session)


def typed(monkeypatch, folder, *arguments):
    """Exit status of a command in a folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["rlft", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code


@pytest.mark.parametrize("mistake", WITH_TORCH, ids=lambda mistake: mistake.name)
def test_a_mistake_that_needs_torch_is_told_too(monkeypatch, capsys, tmp_path, tiny_model, no_ray, mistake):
    lay(tmp_path, mistake, tiny_model)
    before = left(tmp_path)
    assert typed(monkeypatch, tmp_path, *mistake.arguments) == mistake.exit
    assert re.search(mistake.told, capsys.readouterr().err)
    assert left(tmp_path) == before


def test_there_are_more_than_55_and_each_has_a_name_of_its_own():
    assert len(MISTAKES) > 55
    assert max(Counter(mistake.name for mistake in MISTAKES).values()) == 1


def test_the_good_run_that_they_are_made_from_would_start_and_a_retry_after_a_failed_start_too(monkeypatch, tmp_path, tiny_model, no_ray):
    lay(tmp_path, MISTAKES[0], tiny_model)
    for _ in range(2):  # the first start leaves a folder without a step
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["rlft", "train", "run.toml"])
        with pytest.raises(Started):
            cli.main()
        assert Path("runs/run/config.toml").exists()


def test_a_run_file_in_another_folder_is_fine_where_its_paths_start_at_the_current_one(monkeypatch, tmp_path, tiny_model, no_ray):
    lay(tmp_path, MISTAKES[0], tiny_model)
    (tmp_path / "deep").mkdir()
    (tmp_path / "run.toml").rename(tmp_path / "deep" / "run.toml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rlft", "train", "deep/run.toml"])
    with pytest.raises(Started):
        cli.main()
