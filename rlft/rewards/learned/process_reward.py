"""A process reward model: scores every step of the last answer.

Axes: B rows, T tokens, C classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlft.errors import ConfigError, RewardError
from rlft.rewards.grader import defaults
from rlft.rewards.learned.batcher import Batcher, Sequenced
from rlft.rewards.learned.models import DType, Encoder, Source, load_config, load_encoder, load_frozen, padded
from rlft.rewards.learned.reward_model import class_logits
from rlft.types import Group, Trajectory

Aggregate = Literal["min", "mean", "product", "last"]
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "mean": lambda scores: sum(scores) / len(scores),
    "product": math.prod,
    "last": lambda scores: scores[-1],
}


@defaults(timeout_s=300.0)
class ProcessReward:
    """The chance, by a model, that the steps of the last answer are right: one number, and every step's as feedback.

    A token classifier reads the whole answer once, `mark` put after each step, and says its verdict at the mark
    (arXiv:2305.20050; the input is that of TRL's PRMTrainer). A sequence classifier reads every beginning of the answer that
    ends with a step. Which of the two a model is stands in its configuration. An answer without a step earns 0.

    Args:
        model: folder or Hub name.
        separator: what stands between two steps; white space around steps is not part of them.
        mark: what follows each step in the input of a token classifier; "": the separator.
        label: the class that means right, -1 the last. A model with one logit gives its sigmoid, others softmax.
        aggregate: "min", "mean", "product" or "last" over the steps.
        max_length, max_batch_tokens, dtype, device, chat_template: as of a reward model.

    Raises:
        ConfigError: no such model, or an option out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        separator: str = "\n\n",
        mark: str = "",
        label: int = -1,
        aggregate: Aggregate = "min",
        max_length: int = 0,
        max_batch_tokens: int = 16384,
        dtype: DType = "auto",
        device: str = "auto",
        chat_template: str = "",
    ) -> None:
        if not separator or aggregate not in AGGREGATES or max_batch_tokens < 1:
            raise ConfigError(
                f"process_reward: separator {separator!r} must not be empty, aggregate {aggregate!r} one of {', '.join(AGGREGATES)}, "
                f"max_batch_tokens {max_batch_tokens} at least 1"
            )
        self._source = Source(model, dtype, device, chat_template, max_length)
        self._separator, self._mark, self._label = separator, mark or separator, label
        self._aggregate, self._max_batch_tokens = AGGREGATES[aggregate], max_batch_tokens
        self._reads_tokens = False
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None

    async def start(self) -> None:
        """Load the model on a thread of its own. Raises ConfigError."""
        self._batcher = Batcher(self._load, self._max_batch_tokens)
        await self._batcher.start()

    async def score(self, group: Group) -> list[tuple[float, str]]:
        """A value in [0, 1] per trajectory, with feedback that lists the steps."""
        if self._batcher is None or self._encoder is None:
            raise RewardError("process_reward: not started")
        wanted = [self._sequences(self._encoder, trajectory) for trajectory in group.trajectories]
        answers = iter(await self._batcher.submit([sequence for of_one in wanted for sequence in of_one]))
        return [self._verdict([score for _ in of_one for score in next(answers)]) for of_one in wanted]

    async def close(self) -> None:
        """Let go of the model."""
        if self._batcher is not None:
            await self._batcher.close()

    def _verdict(self, scores: Sequence[float]) -> tuple[float, str]:
        if not scores:
            return 0.0, "no step"
        return self._aggregate(scores), "\n".join(f"step {i}: {score:.3f}" for i, score in enumerate(scores, start=1))

    def _sequences(self, encoder: Encoder, trajectory: Trajectory) -> list[Sequenced]:
        *before, answer = trajectory.conversation
        text = answer.get("content") or ""
        ends = step_ends(text, self._separator)
        if not self._reads_tokens:
            return [Sequenced(encoder.encode([*before, {**answer, "content": text[:end]}])) for _, end in ends]
        if not ends:
            return []
        ids, where = encoder.chat.encode(encoder.asked(before)), []
        mark = encoder.chat.codec.encode(self._mark)  # often a special token
        for start, end in ends:
            ids += [*encoder.tokens(text[start:end]), *mark]
            where.append(len(ids) - 1)
        if len(ids) > encoder.max_length:
            raise RewardError(f"process_reward: {len(ids)} tokens are more than the model's {encoder.max_length}; limit the answers")
        return [Sequenced(ids, where)]

    def _load(self) -> Callable[[Sequence[Sequenced]], list[list[float]]]:
        config = load_config(self._source)
        kinds = [kind for kind in ("Token", "Sequence") if str((config.architectures or [""])[0]).endswith(f"For{kind}Classification")]
        if not kinds or not -config.num_labels <= self._label < config.num_labels:
            raise ConfigError(
                f"process_reward: model {self._source.model!r} is a {config.architectures} of {config.num_labels} labels; "
                f"expected a token or sequence classifier with label {self._label}"
            )
        self._encoder = load_encoder(self._source, config)
        self._reads_tokens = kinds == ["Token"]
        model = load_frozen(self._source, f"AutoModelFor{kinds[0]}Classification")
        if self._reads_tokens:
            return lambda batch: _at_marks(model, batch, self._label)
        return lambda batch: [[chance] for chance in _chance(class_logits(model, [s.token_ids for s in batch]), self._label).tolist()]


def step_ends(text: str, separator: str) -> list[tuple[int, int]]:
    """Where the steps of a text begin and end, white space around them left out; empty ones are none."""
    pieces, at = [], 0
    for piece in text.split(separator):
        pieces.append((at, at + len(piece)))
        at += len(piece) + len(separator)
    steps = []
    for start, end in pieces:
        if found := re.search(r"\S(?:.*\S)?", text[start:end], re.DOTALL):
            steps.append((start + found.start(), start + found.end()))
    return steps


def _at_marks(model: Any, batch: Sequence[Sequenced], label: int) -> list[list[float]]:
    import torch

    with torch.inference_mode():
        token_ids, mask = padded([sequence.token_ids for sequence in batch], model, model.config.get_text_config().pad_token_id or 0)
        logits = model(input_ids=token_ids, attention_mask=mask).logits.float()
        return [_chance(row[list(sequence.where)], label).tolist() for row, sequence in zip(logits, batch, strict=True)]


def _chance(logits: Any, label: int) -> Any:
    """[..., C] -> the probability of `label`, [...]."""
    return logits[..., 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[..., label]
