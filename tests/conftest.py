"""Shared fixtures: a tiny model made on the spot, a real one made once, and chat templates of the common families."""

import os
from pathlib import Path

import pytest

from rlft.recipes.smollm2 import build_smollm2
from rlft.recipes.starter import make_model, make_tokenizer

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES = {
    "plain": ("", "<|im_end|>"),
    "chatml": (CHATML, "<|im_end|>"),
    "llama": (LLAMA, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
}
MARKERS = ["<|im_start|>", "<|begin|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]


def pytest_addoption(parser):
    parser.addoption("--nightly", action="store_true", help="run the tests marked nightly, and no others")


def pytest_collection_modifyitems(config, items):
    nightly = config.getoption("--nightly")
    left_out = [item for item in items if ("nightly" in item.keywords) != nightly]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def family_tokenizer(family):
    """The starter's byte tokenizer with the special tokens, the EOS and the template of a model family."""
    template, eos = FAMILIES[family]
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.eos_token, tokenizer.bos_token = eos, "<|begin|>"
    tokenizer.pad_token = eos  # padding with the EOS must be safe
    tokenizer.chat_template = template or None
    return tokenizer


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
