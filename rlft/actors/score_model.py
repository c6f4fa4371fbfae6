"""A reward model as its learner sees it: one score per token sequence.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlft.learner.policy import add_adapters, load_pretrained

HEAD = "score"  # what transformers calls the head of its decoders' sequence classifiers


class ScoreModel(nn.Module):
    """A sequence classifier with one logit."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Scores [B] in float32 of token_ids [B, T] int64, right-padded; mask [B, T] is 1 on real tokens.

        The forward is transformers' own, so that a saved model scores as it was trained: at the
        last token that is not the padding id.
        """
        return self.lm(input_ids=token_ids, attention_mask=mask).logits[:, 0].float()


def load_score_model(
    model: str,
    *,
    dtype: torch.dtype,
    pad_id: int,
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    lora_alpha: float = 16.0,
    lora_targets: Sequence[str] = ("all-linear",),
) -> ScoreModel:
    """Load a language model (its head becomes a new one with one logit) or a sequence classifier with one logit.

    Initial values come from torch's global generator. Training mode, no dropout. With `lora_rank` > 0
    adapters and the head train.

    Args:
        pad_id: padding id, for a model that names none.

    Raises:
        ConfigError: no such model, or one of an architecture without a sequence classifier.
    """
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    shown = logging.get_verbosity()
    logging.set_verbosity_error()  # of course the head is new
    try:
        config, lm = load_pretrained(model, dtype, AutoModelForSequenceClassification, num_labels=1)
    finally:
        logging.set_verbosity(shown)
    text = config.get_text_config()
    text.pad_token_id = pad_id if text.pad_token_id is None else text.pad_token_id
    lm.get_input_embeddings().padding_idx = None  # it would drop the gradient of a real token with the pad id
    if lora_rank:
        add_adapters(lm, lora_rank, lora_alpha, lora_targets, task_type="SEQ_CLS")
        getattr(lm, HEAD).requires_grad_(True)
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return ScoreModel(lm.train())
