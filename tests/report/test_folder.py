"""A run's folder is never another's, and an earlier run in it is not lost before the new one has something to show."""

import os
import socket
import subprocess
import sys

import pytest

import rlft.config
from rlft.errors import ConfigError
from rlft.report.folder import RunFolder
from rlft.report.tracking import Tracker

CONFIG = rlft.config.validate({"model": "m", "steps": 4})


def test_a_run_folder_holds_the_resolved_run_file(tmp_path):
    folder = RunFolder.create(tmp_path / "deep" / "run", CONFIG)
    assert rlft.config.load(folder.config).model_dump(exclude={"run_dir"}) == CONFIG.model_dump(exclude={"run_dir"})
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.toml", "plots", "rollouts"]


def test_an_existing_run_is_kept_unless_overwriting_is_allowed(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG).append_metrics({"step": 1})
    with pytest.raises(ConfigError, match="holds the results of a run; choose another run_dir, or allow overwriting"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert RunFolder.create(tmp_path / "run", CONFIG, overwrite=True).rows() == []


def test_what_a_failed_start_left_is_used_again_and_what_rlft_did_not_write_stays(tmp_path):
    folder = RunFolder.create(tmp_path / "run", CONFIG)
    folder.quarantine.write_text("{}\n")
    (folder.path / "notes.txt").write_text("mine")
    RunFolder.create(tmp_path / "run", CONFIG)
    assert sorted(p.name for p in folder.path.iterdir()) == ["checkpoints", "config.toml", "notes.txt", "plots", "rollouts"]
    (folder.checkpoints / "step-000001").mkdir()  # the controls: a checkpoint, and a step in another test, are results
    with pytest.raises(ConfigError, match=r"holds the results of a run; .*--overwrite.*can go on with it \(--resume"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_a_folder_in_which_another_process_is_starting_is_not_taken(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        config = RunFolder.create(tmp_path / "run", CONFIG).config
        config.write_text(config.read_text().replace(f"process {os.getpid()} on", f"process {other.pid} on"))
        with pytest.raises(ConfigError, match=rf"is where process {other.pid} of .* starts a run; choose another run_dir, or"):
            RunFolder.create(tmp_path / "run", CONFIG)
        other.kill()
    RunFolder.create(tmp_path / "run", CONFIG)  # the control: it has ended
    config.write_text(config.read_text().replace(f" on {socket.gethostname()}", " on another-machine"))
    with pytest.raises(ConfigError, match="of another-machine starts a run"):
        RunFolder.create(tmp_path / "run", CONFIG)


def test_an_empty_folder_is_taken(tmp_path):
    assert RunFolder.create(tmp_path, CONFIG).path == tmp_path


@pytest.mark.parametrize("config_file", [None, 'model = "somebody else\'s"\n'])
def test_a_folder_that_is_no_run_is_never_removed(tmp_path, config_file):
    (tmp_path / "thesis.txt").write_text("years of work")
    if config_file:
        (tmp_path / "config.toml").write_text(config_file)
    with pytest.raises(ConfigError, match="holds no rlft run and is never overwritten"):
        RunFolder.create(tmp_path, CONFIG, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_link_to_a_run_and_a_file_are_never_removed(tmp_path):
    RunFolder.create(tmp_path / "run", CONFIG)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match="never overwritten"):
            RunFolder.create(tmp_path / name, CONFIG, overwrite=True)


def earlier(path):
    folder = RunFolder.create(path, CONFIG)
    folder.append_metrics({"step": 1})
    (folder.path / "notes.txt").write_text("mine")
    return folder


def test_an_earlier_run_comes_back_where_the_one_that_was_to_overwrite_it_fails_before_its_first_result(tmp_path):
    earlier(tmp_path / "run")
    with pytest.raises(KeyError), Tracker(RunFolder.create(tmp_path / "run", CONFIG, overwrite=True), CONFIG):
        raise KeyError("the actors did not come up")
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine" and RunFolder(tmp_path / "run").rows() == [{"step": 1}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_it_comes_back_after_a_start_that_was_killed_too(tmp_path):
    earlier(tmp_path / "run")
    RunFolder.create(tmp_path / "run", CONFIG, overwrite=True)  # and no more
    with pytest.raises(ConfigError, match="holds the results of a run"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert RunFolder(tmp_path / "run").rows() == [{"step": 1}]


def test_it_is_gone_with_the_first_result_of_the_new_one(tmp_path):
    earlier(tmp_path / "run")
    with pytest.raises(KeyError), Tracker(RunFolder.create(tmp_path / "run", CONFIG, overwrite=True), CONFIG) as tracker:
        tracker.log(1, {"reward/mean": 0.5})
        raise KeyError("later")
    assert [path.name for path in tmp_path.iterdir()] == ["run"] and not (tmp_path / "run" / "notes.txt").exists()
    assert len(RunFolder(tmp_path / "run").rows()) == 1


@pytest.mark.parametrize("key", ["model", "chat_template", "data.source", "eval.data.source", "critic.model"])
def test_what_the_run_needs_is_not_overwritten(tmp_path, key):
    folder = earlier(tmp_path / "run")
    table, (*sections, name) = {"model": "m"}, key.split(".")
    inner = table
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = str(folder.path / "notes.txt")
    with pytest.raises(ConfigError, match=rf"holds {key} .*overwriting it would remove that; choose another run_dir"):
        RunFolder.create(folder.path, rlft.config.validate(table), overwrite=True)
    assert (folder.path / "notes.txt").exists()


def test_files_of_others_in_the_place_of_a_killed_start_are_never_removed(tmp_path):
    earlier(tmp_path / "run")
    new = RunFolder.create(tmp_path / "run", CONFIG, overwrite=True)  # killed here
    (new.path / "later.txt").write_text("mine too")
    (new.path / "wandb").mkdir()  # the start's own
    new.restore()
    assert {"notes.txt", "later.txt"} <= {path.name for path in new.path.iterdir()} and not new.replaced.exists()
    assert not (new.path / "wandb").exists()


@pytest.mark.parametrize("left", ["notes.txt", None])
def test_where_it_cannot_come_back_nothing_is_touched_and_both_places_are_named(tmp_path, left):
    earlier(tmp_path / "run")
    new = RunFolder.create(tmp_path / "run", CONFIG, overwrite=True)
    if left:
        (new.path / left).write_text("another of that name")
    else:  # somebody else's folder stands in its place
        new.config.unlink()
        (new.path / "thesis.txt").write_text("years of work")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="is an earlier run that was set aside by a start that did not come far; move it back"):
        RunFolder.create(tmp_path / "run", CONFIG)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_killed_at_its_first_result_can_be_overwritten_in_its_turn(tmp_path):
    earlier(tmp_path / "run")
    RunFolder.create(tmp_path / "run", CONFIG, overwrite=True).append_metrics({"step": 1, "second": 1.0})  # killed before `forget`
    third = RunFolder.create(tmp_path / "run", CONFIG, overwrite=True)
    third.restore()
    assert third.rows() == [{"step": 1, "second": 1.0}]
