"""Losses over pairs of scores, for reward models.

Axes: P pairs.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), [P]: the loss of every pair.

    Without margins the pairwise ranking loss of arXiv:2203.02155 (eq. 1), with them that of Llama 2
    (arXiv:2307.09288, eq. 2): a pair that is clearly told apart by its annotators must be so by its scores.
    Finite for every finite score.
    """
    return -logsigmoid(chosen - rejected - margins)
