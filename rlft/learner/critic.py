"""The critic: a model of its own that says what a state is worth, and how well it does.

Axes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlft.algorithms.base import Reduce
from rlft.learner.policy import ValueHead, load_pretrained, states_before


class CriticModel(nn.Module):
    """A language model's body with a value head in the place of its output projection."""

    def __init__(self, lm: Any, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.lm = lm
        self.value_head = ValueHead(width, dtype)

    def forward(self, token_ids: Tensor, mask: Tensor) -> Tensor:
        """What the state is worth in which each masked token is chosen: [B, T], [B, T] -> [B, T] float32, 0 off the mask."""
        hidden = self.lm(input_ids=token_ids, use_cache=False).last_hidden_state
        place, states = states_before(hidden, mask)
        return torch.zeros(token_ids.shape, dtype=torch.float32, device=hidden.device).index_put(place, self.value_head(states))


def load_critic(model: str, dtype: torch.dtype, gradient_checkpointing: bool = False) -> CriticModel:
    """The body of a model from a folder or the Hub, with a value head that is 0 everywhere. Raises ConfigError."""
    from transformers import AutoModel

    config, lm = load_pretrained(model, dtype, AutoModel)
    lm.get_input_embeddings().padding_idx = None  # it would drop the gradient of a real token with the pad id
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return CriticModel(lm.train(), config.get_text_config().hidden_size, dtype)


def explained_variance(returns: Tensor, values: Tensor, mask: Tensor, reduce: Reduce) -> float:
    """1 - Var(returns - values) / Var(returns) over the masked tokens of all ranks; 0 where all returns are equal.

    1 is a perfect critic, 0 one that is no better than a constant.
    """
    x = torch.stack([mask.double(), returns.double(), (returns - values).double()])
    x = torch.where(mask, x, 0.0).flatten(1)
    count, *sums = reduce(x.sum(-1)).unbind()
    means = torch.stack([torch.zeros_like(count), *sums]) / count.clamp(min=1)
    deviations = torch.where(mask.flatten(), (x - means[:, None]).square(), 0.0).sum(-1)
    _, of_returns, of_errors = reduce(deviations).tolist()
    return 1 - of_errors / of_returns if of_returns > 0 else 0.0
