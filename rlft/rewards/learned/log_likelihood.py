"""A frozen language model as a reward: how likely it finds what comes next, or the answer itself.

Axes: B rows, T tokens, V vocabulary, S scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlft.chat.chat import ASSISTANT, Rendered
from rlft.errors import ConfigError, RewardError
from rlft.rewards.grader import defaults
from rlft.rewards.learned.batcher import Batcher, Sequenced
from rlft.rewards.learned.models import DType, Encoder, Source, load_config, load_encoder, load_frozen, padded
from rlft.types import Group, Trajectory

CHUNK = 256  # tokens whose [S, V] distributions are held at once


@defaults(timeout_s=300.0)
class LogLikelihood:
    """Log-probability, in nats, of given follow-ups after the conversation, or of the answer after its prompt.

    With `followups` (arXiv:2409.13948): the mean over them of their log-probability as the next message, less the mean over
    `against`. Without any: of the answer itself, its EOS included unless it was cut off (self-reward,
    arXiv:2412.01951). Only the texts themselves count, not the markup of the chat template around them.

    Args:
        model: folder or Hub name of a causal language model.
        followups: what a content listener would say next.
        against: what a discontent one would say.
        role: who says it.
        reduce: a text's "mean" per token, or their "sum".
        max_length, max_batch_tokens, dtype, device, chat_template: as of a reward model.

    Raises:
        ConfigError: no such model, or an option out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        followups: Sequence[str] = (),
        against: Sequence[str] = (),
        role: str = "user",
        reduce: Literal["mean", "sum"] = "mean",
        max_length: int = 0,
        max_batch_tokens: int = 8192,
        dtype: DType = "auto",
        device: str = "auto",
        chat_template: str = "",
    ) -> None:
        if isinstance(followups, str) or isinstance(against, str) or not all(text.strip() for text in (*followups, *against)):
            raise ConfigError("log_likelihood: followups and against are lists of texts, none of them empty")
        if against and not followups:
            raise ConfigError("log_likelihood: against needs followups; to pay for their absence alone use a negative weight")
        if reduce not in ("mean", "sum") or max_batch_tokens < 1:
            raise ConfigError(f"log_likelihood: reduce {reduce!r} must be 'mean' or 'sum', max_batch_tokens {max_batch_tokens} at least 1")
        self._source = Source(model, dtype, device, chat_template, max_length)
        self._followups, self._against, self._role = tuple(followups), tuple(against), role
        self._mean, self._max_batch_tokens = reduce == "mean", max_batch_tokens
        self._encoder: Encoder | None = None
        self._batcher: Batcher | None = None

    async def start(self) -> None:
        """Load the model on a thread of its own. Raises ConfigError."""
        self._batcher = Batcher(self._load, self._max_batch_tokens)
        await self._batcher.start()

    async def score(self, group: Group) -> list[float]:
        """One value per trajectory. Concurrent calls share batches; none changes another's values."""
        if self._batcher is None or self._encoder is None:
            raise RewardError("log_likelihood: not started")
        wanted = [self._sequences(self._encoder, trajectory) for trajectory in group.trajectories]
        sums = iter(await self._batcher.submit([sequence for of_one in wanted for sequence in of_one]))
        values = []
        for of_one in wanted:
            texts = [next(sums) / (len(sequence.where) if self._mean else 1) for sequence in of_one]
            good, bad = texts[: len(self._followups) or 1], texts[len(self._followups) or 1 :]
            values.append(sum(good) / len(good) - (sum(bad) / len(bad) if bad else 0.0))
        return values

    async def close(self) -> None:
        """Let go of the model."""
        if self._batcher is not None:
            await self._batcher.close()

    def _sequences(self, encoder: Encoder, trajectory: Trajectory) -> list[Sequenced]:
        messages = trajectory.conversation
        if not self._followups:
            eos = encoder.tokenizer.eos_token_id
            closed = [] if trajectory.status == "truncated" or eos is None else [eos]
            return [_scored(encoder, encoder.asked(messages[:-1]), messages[-1]["content"], ASSISTANT, closed)]
        sequences = []
        for text in (*self._followups, *self._against):
            sequences.append(_scored(encoder, encoder.chat.opening(messages, self._role), text, self._role))
        return sequences

    def _load(self) -> Callable[[Sequence[Sequenced]], list[float]]:
        self._encoder = load_encoder(self._source, load_config(self._source))
        model = load_frozen(self._source, "AutoModelForCausalLM")
        return lambda batch: log_probabilities(model, batch)


def _scored(encoder: Encoder, before: Rendered, text: str, role: str, closed: Sequence[int] = ()) -> Sequenced:
    """A sequence whose `where` are the tokens of `text` and of what closes it, as far as something stands before them."""
    whole, start = encoder.behind(before, text, role)
    ids = encoder.cut([*whole, *closed])
    where = range(max(1, len(ids) - (len(whole) + len(closed) - start)), len(ids))
    if not where:
        raise RewardError("log_likelihood: no token to score; an empty answer of a model without EOS, or nothing before it")
    return Sequenced(ids, where)


def log_probabilities(model: Any, batch: Sequence[Sequenced]) -> list[float]:
    """Log-probability in nats of the tokens at `where`, summed, for each sequence.

    Logits are computed at the columns that some row needs: never [B, T, V].
    """
    import torch

    with torch.inference_mode():
        token_ids, mask = padded([sequence.token_ids for sequence in batch], model, 0)
        rows = torch.tensor([row for row, sequence in enumerate(batch) for _ in sequence.where], device=model.device)
        columns = torch.tensor([column for sequence in batch for column in sequence.where], device=model.device)
        needed, place = torch.unique(columns - 1, return_inverse=True)
        logits = model(input_ids=token_ids, attention_mask=mask, use_cache=False, logits_to_keep=needed).logits
        parts = zip(*(x.split(CHUNK) for x in (rows, place, token_ids[rows, columns])), strict=True)
        scored = torch.cat([logits[r, p].float().log_softmax(-1).gather(1, ids[:, None]) for r, p, ids in parts]).squeeze(1).double()
        return torch.zeros(len(batch), dtype=torch.float64, device=model.device).index_add(0, rows, scored).tolist()
