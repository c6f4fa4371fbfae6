"""A reward model: any sequence classifier, scoring whole conversations.

Axes: B rows, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rlft.errors import ConfigError, RewardError
from rlft.rewards.grader import defaults
from rlft.rewards.learned.batcher import Batcher, Sequenced
from rlft.rewards.learned.models import DType, Encoder, Source, load_config, load_encoder, load_frozen, padded
from rlft.types import Group


@defaults(timeout_s=300.0)
class RewardModel:
    """Scores a trajectory's conversation with an AutoModelForSequenceClassification: one of its logits, less `center`.

    Args:
        model: folder or Hub name; one trained by `rlft train-rm` says its score in logit 0.
        head: which logit, where there are several.
        center: subtracted from every score. A Bradley-Terry model's scores have no zero of their own.
        max_length: tokens of a conversation; a longer one keeps its end. 0: the model's limit.
        max_batch_tokens: padded tokens of one forward pass, over all calls that wait.
        dtype: of the weights; "auto" is bfloat16 on GPU, float32 on CPU. Only float32 scores do not depend on the batch.
        device: "auto" is a GPU if this process has one.
        chat_template: file with a Jinja template; "": the model's own, else contents joined.

    Raises:
        ConfigError: no such model, or an option out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        head: int = 0,
        center: float = 0.0,
        max_length: int = 0,
        max_batch_tokens: int = 16384,
        dtype: DType = "auto",
        device: str = "auto",
        chat_template: str = "",
    ) -> None:
        if head < 0 or max_batch_tokens < 1:
            raise ConfigError(f"reward_model: head {head} and max_batch_tokens {max_batch_tokens} must be at least 0 and 1")
        self._source = Source(model, dtype, device, chat_template, max_length)
        self._head, self._center, self._max_batch_tokens = head, float(center), max_batch_tokens
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None

    async def start(self) -> None:
        """Load the model on a thread of its own. Raises ConfigError."""
        self._batcher = Batcher(self._load, self._max_batch_tokens)
        await self._batcher.start()

    async def score(self, group: Group) -> list[float]:
        """One score per trajectory. Concurrent calls share batches; none changes another's scores."""
        return await self.score_conversations([trajectory.conversation for trajectory in group.trajectories])

    async def score_conversations(self, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[float]:
        """One score per conversation (lists of messages)."""
        if self._batcher is None or self._encoder is None:
            raise RewardError("reward_model: not started")
        scores = await self._batcher.submit([Sequenced(self._encoder.encode(messages)) for messages in conversations])
        return [score - self._center for score in scores]

    async def close(self) -> None:
        """Let go of the model."""
        if self._batcher is not None:
            await self._batcher.close()

    def _load(self) -> Callable[[Sequence[Sequenced]], list[float]]:
        config = load_config(self._source)
        if self._head >= config.num_labels:
            raise ConfigError(f"reward_model: head {self._head}, but model {self._source.model!r} has {config.num_labels} logits")
        self._encoder = load_encoder(self._source, config)
        model = load_frozen(self._source, "AutoModelForSequenceClassification")

        def answer(batch: Sequence[Sequenced]) -> list[float]:
            return class_logits(model, [sequence.token_ids for sequence in batch])[:, self._head].tolist()

        return answer


def class_logits(model: Any, sequences: Sequence[Sequence[int]]) -> Any:
    """Logits [B, C] of a sequence classifier, float32, each as if its sequence had been alone.

    A decoder reads its score at the last token that is not the padding id, so a model that names none gets
    one here that ends no sequence of the batch.
    """
    import torch

    text = model.config.get_text_config()
    declared = text.pad_token_id
    if declared is None:
        ends = {ids[-1] for ids in sequences}
        text.pad_token_id = next(i for i in range(text.vocab_size) if i not in ends)
    try:
        with torch.inference_mode():
            token_ids, mask = padded(sequences, model, text.pad_token_id)
            return model(input_ids=token_ids, attention_mask=mask).logits.float()
    finally:
        text.pad_token_id = declared
