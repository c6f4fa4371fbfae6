"""Shared fixtures: a tiny model made on the spot, a real one made once, and tokenizers of the common families."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded: its threads starve beside a busy process

from rlft.recipes.smollm2 import build_smollm2  # noqa: E402
from rlft.recipes.starter import make_model  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from families import FAMILIES, family_tokenizer  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, and no others")


def pytest_collection_modifyitems(config, items):
    nightly = config.getoption("--nightly")
    left_out = [item for item in items if ("nightly" in item.keywords) != nightly]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", params=FAMILIES)
def tokenizer(request):
    return family_tokenizer(request.param)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A folder with an untrained Qwen2 of two layers (tied embeddings)."""
    return str(make_model(tmp_path_factory.mktemp("model") / "tiny", seed=0, layers=2, width=64))


@pytest.fixture(scope="session")
def smollm2():
    """A folder with SmolLM2-135M-Instruct. Making it takes 20 seconds, so it is kept from one session of the tests to the next."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return str(build_smollm2(Path(cache).expanduser() / "rlft" / "smollm2"))
