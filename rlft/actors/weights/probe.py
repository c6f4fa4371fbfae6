"""A few sentences that engine and learner must score alike: catches wrong mathematics, which no comparison of bytes can see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rlft.errors import PublishError

TEXT = (
    "The old lighthouse keeper counted seventeen ships before the fog came in, and wrote each name in a book that nobody had read.",
    "To make bread you need flour, water, salt and time; knead the dough for ten minutes, then let it rest in a warm place.",
    "def area(width, height):\n    return width * height\n\nprint(area(3, 4))  # 12 square metres of carpet for the small room",
    "Q: If a train leaves at 9:40 and the journey takes 85 minutes, when does it arrive?\nA: It arrives at 11:05, five past eleven.",
)
MAX_TOKENS = 32  # of each sentence

MAX_MEAN_DIFF = {"float32": 0.01, "bfloat16": 0.5}  # nats a token, engine against learner
MAX_SLOPE_OFF = 0.4  # share of the learner's change that the engine may lack or have in excess
MIN_CLEAR = 5.0  # times the rounding between both that the change must be: below, its slope says nothing

SINCE = (("first", "publish/slope_first", "publish/clear_first"), ("last", "publish/slope_last", "publish/clear_last"))

Logprobs = Sequence[Sequence[float]]


def probe_ids(tokenizer: Any, max_model_len: int) -> list[list[int]]:
    """The sentences as the run's tokenizer encodes them, as far as they fit: the engine adds one token."""
    most = min(MAX_TOKENS, max_model_len - 1)
    return [list(tokenizer(text)["input_ids"])[:most] for text in TEXT]


def padded(token_ids: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Sequences of different lengths as [B, T] ids, padded on the right, and which of them are real."""
    lengths = torch.tensor([len(ids) for ids in token_ids])
    ids = torch.full((len(token_ids), int(lengths.max())), pad_id)
    for row, sequence in zip(ids, token_ids, strict=True):
        row[: len(sequence)] = torch.tensor(sequence)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]


def policy_logprobs(policy: Any, token_ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> list[list[float]]:
    """Log-probabilities at temperature 1, adapters applied, [len - 1] each: the first token has nothing before it."""
    ids, real = padded(token_ids, pad_id)
    with torch.no_grad():
        logprobs = policy(ids.to(device), real.to(device), 1.0)[0].tolist()
    return [row[1 : len(sequence)] for row, sequence in zip(logprobs, token_ids, strict=True)]


@dataclass(frozen=True)
class Slope:
    """How much of the learner's change an engine shows: 1 is all of it."""

    value: float
    clear: float  # how many times larger than rounding the learner's change is

    @property
    def wrong(self) -> bool:
        return self.clear > MIN_CLEAR and not abs(self.value - 1) <= MAX_SLOPE_OFF


def slope(engine: Sequence[float], learner: Sequence[float], gaps: Sequence[float]) -> Slope:
    """Least squares, through 0, of the engine's changes [n] on the learner's since a publish at which they were `gaps` apart.

    Both changes hold rounding. That of the learner alone pulls the slope to 0, by 1 / clear**2 at the most.
    """
    size = math.fsum(m * m for m in learner)
    if size == 0:
        return Slope(1.0, 0.0)
    value = math.fsum(e * m for e, m in zip(engine, learner, strict=True)) / size
    rounding = math.fsum(g * g for g in gaps)
    return Slope(value, math.sqrt(size / rounding) if rounding else math.inf)


@dataclass
class Probe:
    """Fixed sequences whose log-probabilities engine and learner must agree on, and how both have moved since they first did."""

    token_ids: Sequence[Sequence[int]]
    dtype: str  # "float32" or "bfloat16", the coarser of the two sides
    merged: bool = False  # adapters are merged into what the engines hold
    _seen: dict[str, list[tuple[list[float], list[float]]]] = field(default_factory=dict)  # by engine: first and last

    def compare(self, engine: Logprobs, learner: Logprobs, who: str, version: int) -> dict[str, float]:
        """Figures of one engine's publish.

        Raises:
            PublishError: the log-probabilities are too far apart, or one side has moved in another way than the other.
        """
        theirs, ours = _flat(engine), _flat(learner)
        gaps = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
        mean, limit = sum(gaps) / len(gaps), MAX_MEAN_DIFF[self.dtype]
        if not mean <= limit:  # NaN too
            raise PublishError(
                f"{who} computes another policy than the learner at version {version}: log-probabilities of the probe differ by "
                f"{mean:.2g} nats on average (at most {limit:g}); {ADVICE}"
            )
        figures = {"publish/max_diff": max(gaps), "publish/mean_diff": mean}
        # Rounding a merged weight to bfloat16 loses changes below its last bit, which applied adapters keep: no fault of the publish.
        judged = not (self.merged and self.dtype == "bfloat16")
        seen = self._seen.setdefault(who, [])
        for (when, slope_name, clear_name), (their_base, our_base) in zip(SINCE, seen, strict=False):
            found = slope(_changes(theirs, their_base), _changes(ours, our_base), _changes(their_base, our_base))
            if judged and found.wrong:
                raise PublishError(
                    f"{who} did not follow the learner to version {version}: since the {when} publish the probe's log-probabilities "
                    f"moved by {found.value:.2f} of the learner's change, which is {found.clear:.0f} times their rounding; {ADVICE}"
                )
            figures |= {slope_name: found.value, clear_name: found.clear}
        self._seen[who] = [seen[0] if seen else (theirs, ours), (theirs, ours)]
        return figures


ADVICE = (
    "training on would learn from another policy's samples. If adapters train, merging them may be at fault, else the engine's model "
    "code: try other learner.lora_targets, learner.lora_rank = 0, or report the model with the versions of vllm and transformers"
)


def _flat(logprobs: Logprobs) -> list[float]:
    return [x for row in logprobs for x in row]


def _changes(now: Sequence[float], before: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(now, before, strict=True)]
