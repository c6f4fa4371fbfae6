"""The starter policy: a small language model that rlft makes itself and warm-starts on noisy demonstrations.

Nothing is downloaded: a byte-level tokenizer, a Qwen2 model of under a million parameters, and
supervised training on the additions of `rlft.recipes.addition`, of which many carry a slip.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlft.config import RECIPES, load
from rlft.errors import ConfigError

PAD, EOS = "<|endoftext|>", "<|im_end|>"  # names that Qwen tokenizers know, so that loading adds no others


def build_starter(folder: str | Path, seed: int = 0, address: str | None = None) -> Path:
    """Make the starter policy of `seed` in `folder`, unless it is there already.

    Returns the folder with the model in Hugging Face format. A folder made by another version
    of the recipe is made anew.

    Raises:
        ConfigError: the folder holds something else.
    """
    folder = Path(folder)
    recipe = (RECIPES / "starter.toml").read_bytes() + (RECIPES / "addition.py").read_bytes() + Path(__file__).read_bytes()
    identity = hashlib.sha256(recipe + str(seed).encode()).hexdigest()
    stamp = folder / "starter.sha256"
    if stamp.is_file() and stamp.read_text() == identity:
        return folder
    check_replaceable(folder, stamp)
    from rlft.runs.run import sft

    work = folder.with_name(f"{folder.name}.sft")
    untrained = make_model(folder.with_name(f"{folder.name}.untrained"), seed)
    config = load("starter", [f"model={untrained}", f"seed={seed}", f"data.options.seed={seed}", f"run_dir={work}"])
    summary: dict[str, Any] = sft(config, address=address, overwrite=work.exists())
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(summary["checkpoint"], folder)
    stamp.write_text(identity)
    return folder


def check_replaceable(folder: Path, stamp: Path) -> None:
    """Refuse a folder in which something lies that was not made here. Raises ConfigError."""
    if folder.exists() and not (folder.is_dir() and (stamp.is_file() or not any(folder.iterdir()))):
        raise ConfigError(f"{str(folder)!r} exists and holds no model that rlft made; nothing in it is removed: choose another --out")
    if not folder.name:
        raise ConfigError(f"--out {str(folder)!r}: name a folder of its own")


def make_tokenizer() -> Any:
    """A lossless byte-level tokenizer: 256 bytes, a pad and an end-of-sequence token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate([PAD, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(PAD, special=True), AddedToken(EOS, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, clean_up_tokenization_spaces=False)


def make_model(folder: str | Path, seed: int = 0, tied: bool = True, layers: int = 4, width: int = 128) -> Path:
    """Write an untrained Qwen2 model and its tokenizer to `folder` in Hugging Face format."""
    import torch

    with quiet():
        from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=1024,
        initializer_range=0.06,  # the usual 0.02 is for widths of thousands; here it delays learning by hundreds of steps
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and without warnings of what it imports (DeepSpeed's about the missing GPU)."""
    from transformers.utils import logging as bars

    drawn, level = bars.is_progress_bar_enabled(), logging.root.manager.disable
    bars.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        if drawn:
            bars.enable_progress_bar()
