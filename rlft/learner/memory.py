"""What training costs in memory, and the ZeRO stage and token budgets that follow from it: arithmetic, no measurement.

Units are bytes, tokens are padded ones. benchmarks/memory/ holds the arithmetic against measured peaks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlft.config import LearnerConfig

GIB = 1 << 30
BUCKET = 200_000_000  # elements that ZeRO reduces or gathers at once, at most
COPIES = 2  # of a chunk's float32 logits that live at once: logits and probabilities
MOST_CHUNK, LEAST_CHUNK = 4096, 64
MOST_ON_GPU, MOST_ON_CPU = 32768, 8192  # tokens: larger micro-batches save no time
USEFUL_ON_CPU = 1.5 * GIB  # of activations: tokens cost the same in smaller micro-batches, which are padded less
SCATTERED = 1.5  # on CPU, bytes that the C library holds for one of activations: measured, benchmarks/memory/results.md
HEAD_ON_CPU, HEAD_ON_GPU = 0.125 * GIB, GIB  # of logits
RESERVE = 0.1  # share of the memory that stays free: fragments, buffers of libraries


@dataclass(frozen=True)
class Shape:
    """A decoder: its widths and its numbers of parameters."""

    layers: int
    hidden: int
    intermediate: int  # of all experts that a token passes
    query: int  # heads times their size
    key_value: int
    vocabulary: int
    parameters: int
    trained: int  # of these


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    bf16: bool
    stage: int  # ZeRO
    num_ranks: int = 1
    checkpointing: bool = False
    offload: bool = False
    others: float = 0.0  # bytes that a reference and a critic hold besides

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return 2 if self.bf16 else 4


@dataclass(frozen=True)
class Budgets:
    """What was chosen."""

    tokens: int  # of a micro-batch
    chunk: int  # tokens projected on the vocabulary at once
    longest: int  # tokens of the longest row for which there is memory
    state: float  # bytes of weights, gradients and optimizer
    activations: float  # of a micro-batch


def shape_of(config: Any, parameters: int, trained: int) -> Shape:
    """From a text model's transformers configuration and its counted parameters."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    experts = getattr(config, "num_experts_per_tok", None) or 1
    width = (getattr(config, "moe_intermediate_size", None) or config.intermediate_size) if experts > 1 else config.intermediate_size
    return Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=experts * width,
        query=heads * size,
        key_value=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary=config.vocab_size,
        parameters=parameters,
        trained=trained,
    )


def activation_bytes(shape: Shape, training: Training) -> float:
    """What the backward pass keeps of one token, in a pre-norm decoder with gated MLP and fused attention.

    A layer keeps 4 hidden (what both norms saw and gave), 2 more of what a norm's trained weight multiplied, 2 query
    (query, attention's result), 2 key_value, 4 intermediate (gate, its activation, up, their product). In
    bfloat16 the norms compute in float32, so what they saw counts double. With checkpointing a layer keeps its
    input alone, and one layer at a time is computed again in full.
    """
    trains_norms = shape.trained == shape.parameters
    norms = 4 + 2 * trains_norms + 2 * training.bf16
    layer = norms * shape.hidden + 2 * shape.query + 2 * shape.key_value + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + layer if training.checkpointing else shape.layers * layer
    return float(kept * training.width)


def state_bytes(shape: Shape, training: Training) -> float:
    """Weights, gradients, optimizer and what ZeRO holds beside them, on one rank.

    Without ZeRO: gradients in the weights' type, and AdamW's two moments in float32. With it, a rank holds its share of
    float32 weights (beside the weights in use), of both moments and of gradients, and a bucket of gradients. Stage 1
    holds whole gradients; stage 3 a share of the weights, and a bucket in which they are gathered.
    """
    width, share = training.width, 1 / training.num_ranks
    weights, trained = shape.parameters * width, shape.trained
    if training.stage == 0:
        return float(weights + trained * (width + 8) + training.others)
    optimizer = 0.0 if training.offload else 12 * trained * share
    bucket = min(BUCKET, trained) * width
    gradients = trained * width * (1.0 if training.stage == 1 else share)
    if training.stage == 3:
        weights = weights * share + min(BUCKET, shape.parameters) * width
    return float(weights + optimizer + gradients + bucket + training.others)


def head_bytes(shape: Shape, training: Training, chunk: int) -> float:
    """What projecting `chunk` tokens holds: their float32 logits, and the weight's gradient before it is added to the others."""
    gradient = 2 * shape.vocabulary * shape.hidden * training.width if shape.trained == shape.parameters else 0
    return float(COPIES * chunk * shape.vocabulary * 4 + gradient)


def choose_stage(config: LearnerConfig, num_ranks: int, bf16: bool, fits: bool = True) -> int:
    """The ZeRO stage of the run file, or where it names none the cheapest one that keeps the optimizer in float32.

    One rank shares nothing: stage 0 steps plain AdamW. With bfloat16, or an offloaded optimizer, ZeRO alone
    keeps float32 weights beside: stage 1. Several ranks share gradients and optimizer: stage 2, and the weights
    too where they would not fit whole: stage 3.
    """
    if config.zero_stage is not None:
        return config.zero_stage
    if num_ranks > 1:
        return 2 if fits else 3
    return 1 if bf16 or config.offload_optimizer else 0


def training_of(config: LearnerConfig, shape: Shape, num_ranks: int, bf16: bool, memory: float) -> Training:
    """How a run trains: the run file's options, with the ZeRO stage that `choose_stage` finds for `memory` bytes a rank."""
    whole = Training(bf16, 2, num_ranks, config.gradient_checkpointing, config.offload_optimizer)
    return replace(whole, stage=choose_stage(config, num_ranks, bf16, fits_whole(shape, whole, memory)))


def fits_whole(shape: Shape, training: Training, memory: float) -> bool:
    """Whether a rank with whole weights leaves a fifth of `memory` (all there is, used or not) for activations."""
    return state_bytes(shape, training) <= 0.8 * memory


def choose_budgets(shape: Shape, training: Training, memory: float, gpu: bool, config: LearnerConfig) -> Budgets:
    """The budgets of the run file, or where it names none those for which there is memory and use.

    The chunk's logits take at most an eighth of a GiB on CPU, one GiB on GPU. Activations take what state, head and a
    reserve leave of `memory`, on CPU half again as much as is kept; at most 1.5 GiB are kept there, or 8,192 tokens, on GPU
    32,768 tokens. Numbers above 256 are rounded down to multiples of it.

    Args:
        memory: bytes that this rank may use in all, those that it uses already included.
    """
    chunk = config.logprob_chunk or _between(
        LEAST_CHUNK, _rounded((HEAD_ON_GPU if gpu else HEAD_ON_CPU) / (COPIES * 4 * shape.vocabulary)), MOST_CHUNK
    )
    kept, state = activation_bytes(shape, training), state_bytes(shape, training)
    per_token = kept if gpu else SCATTERED * kept
    room = (1 - RESERVE) * memory - state - head_bytes(shape, training, chunk)
    longest = max(0, int(room / per_token))
    useful = MOST_ON_GPU if gpu else min(MOST_ON_CPU, USEFUL_ON_CPU / kept)
    tokens = config.max_tokens_per_micro_batch or max(1, _rounded(min(longest, useful)))
    return Budgets(tokens, chunk, longest, state, tokens * per_token)


def explain(
    budgets: Budgets, training: Training, config: LearnerConfig, memory: float, longest_row: int = 0, head: bool = True
) -> Mapping[str, str]:
    """What to tell of a choice: "chosen", and where the longest row has no room "tight"; nothing where the run file chose all.

    Args:
        head: whether the model projects on the vocabulary at all.
    """
    told: dict[str, str] = {}
    chosen = {
        "zero_stage": (config.zero_stage, training.stage),
        "max_tokens_per_micro_batch": (config.max_tokens_per_micro_batch, budgets.tokens),
    }
    if head:
        chosen["logprob_chunk"] = (config.logprob_chunk, budgets.chunk)
    if lines := [f"{name} = {value}" for name, (given, value) in chosen.items() if given is None]:
        told["chosen"] = (
            f"learner: chosen {', '.join(lines)}; with {budgets.state / GIB:.1f} GiB of weights, gradients and optimizer in "
            f"{'bfloat16' if training.bf16 else 'float32'} a micro-batch takes {budgets.activations / GIB:.1f} GiB, and a rank "
            f"may use {memory / GIB:.1f} GiB in all. Write them into [learner] to keep them"
        )
    if longest_row > budgets.longest:
        way = "give the ranks more memory, or more of them" if training.checkpointing else "set learner.gradient_checkpointing = true"
        told["tight"] = (
            f"learner: a row of {longest_row} tokens (rollout.max_model_len) needs more memory than a rank has: "
            f"{budgets.longest} tokens fit. Such a row stands alone in its micro-batch and may run out of memory: {way}"
        )
    return told


def _rounded(tokens: float) -> int:
    return int(tokens) // 256 * 256 if tokens >= 256 else int(tokens)


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
