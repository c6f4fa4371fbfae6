"""Where a name of a model or data set leads: to a folder, or to one question to the Hub."""

import socket
import time
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub.constants
import pytest

from rlft import hub
from rlft.errors import ConfigError


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    """A cache and a current folder of the test's own, and nothing remembered."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    hub.check_on_hub.cache_clear()


@contextmanager
def silent_server():
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", ["./x", "../x", "/x", "~/x", "runs/x", "runs/x/checkpoints/step-1", "a/b/c/d", "here/x"])
def test_a_name_that_is_written_as_a_path_is_one(name):
    Path("here").mkdir()
    assert hub.looks_local(name)
    assert not hub.looks_local("owner/name") and not hub.looks_local("name")  # the controls


@pytest.mark.parametrize(
    ("model", "made"),
    [
        ("runs/starter", "`rlft starter` makes it"),
        ("./runs/starter-3", "`rlft starter --seed 3` makes it"),
        ("runs/smollm2/", "`rlft starter smollm2` makes it"),
        ("runs/other", "give a folder in Hugging Face format"),
    ],
)
def test_a_missing_model_says_what_makes_it(model, made):
    with pytest.raises(ConfigError, match=f"no such folder .looked in /.*; {made}"):
        hub.check_model(model)


def test_a_hub_that_does_not_answer_is_told_within_its_deadline_and_asked_once(monkeypatch):
    monkeypatch.setattr(hub, "LOOK_S", 0.5)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with silent_server() as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        started = time.monotonic()
        with pytest.raises(ConfigError, match="cannot be reached: .*(no answer|timed out).*; give a folder"):
            hub.check_on_hub("owner/name", "model")
        assert time.monotonic() - started < 10  # promised


def test_what_lies_in_the_cache_is_not_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="it is not in the cache .*while HF_HUB_OFFLINE keeps from asking the Hub"):
        hub.check_on_hub("owner/name", "dataset")
    (tmp_path / "cache" / "datasets--owner--name" / "snapshots").mkdir(parents=True)
    hub.check_on_hub("owner/name", "dataset")
