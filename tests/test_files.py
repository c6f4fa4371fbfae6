"""Files that people hand in are read as they are written, or told in one line."""

import ctypes
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlft import cli
from rlft.config import DataConfig, load
from rlft.data.sources import load_tasks
from rlft.errors import ConfigError, DataError
from rlft.files import read_text
from rlft.runs.limits import stated_positions


@contextmanager
def as_nobody():
    """Files are opened with the rights of another user, by this thread alone."""
    libc = ctypes.CDLL(None)
    before = libc.setfsuid(65534)
    try:
        yield
    finally:
        libc.setfsuid(before)


@pytest.fixture
def closed():
    """A folder that all may enter, for files that only their owner may read."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def secret(path, text="model = 'm'\n"):
    path.write_text(text)
    path.chmod(0o000)
    return path


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are root's to take")


def test_a_byte_order_mark_is_no_part_of_a_run_file(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbfmodel = 'm'\n")
    assert load(tmp_path / "run.toml").model == "m"


def test_a_text_in_another_encoding_is_told_with_its_line(tmp_path):
    (tmp_path / "t").write_bytes("a\nb\ncafé".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"what: .*t' is no text in UTF-8 \(byte 0xe9 in line 3\): save it as UTF-8"):
        read_text(tmp_path / "t", "what")
    (tmp_path / "t").write_text("a\nb\ncafé", encoding="utf-8")
    assert read_text(tmp_path / "t", "what") == "a\nb\ncafé"  # the control


@as_root
def test_files_of_others_are_told_with_what_to_do(closed):
    run, data = secret(closed / "run.toml"), secret(closed / "t.jsonl", '{"prompt": "1", "answer": "1"}\n')
    secret(closed / "config.json", "{}")
    config = DataConfig(source=str(data))
    with as_nobody():
        with pytest.raises(ConfigError, match="run.toml cannot be read: Permission denied; let this user read it"):
            load(run)
        with pytest.raises(ConfigError, match="config.json' cannot be read: Permission denied; let this user read it"):
            stated_positions(str(closed))
        with pytest.raises(DataError, match="t.jsonl cannot be read: Permission denied; let this user read it"):
            load_tasks(config)
    assert load(run).model == "m" and len(load_tasks(config).tasks) == 1  # the control: their owner may


@as_root
def test_a_folder_that_may_not_be_entered_is_told_in_one_line(closed, monkeypatch, capsys):
    run = closed / "in" / "run.toml"
    run.parent.mkdir(mode=0o700)
    run.write_text("model = 'm'\n")
    monkeypatch.setattr(sys, "argv", ["rlft", "train", str(run)])
    with as_nobody(), pytest.raises(SystemExit) as exit:
        cli.main()
    told = capsys.readouterr().err
    assert exit.value.code == 1 and told.count("\n") == 1
    assert told.startswith(f"PermissionError: {run}: Permission denied; let this user read it")
