"""Losses over preferences: of reward models, and of policies against a reference.

Axes: P pairs, M trajectories. A policy's log-ratio is the sum over an answer's tokens of log p - log p_ref, in
nats; the `lead` of a pair is the chosen answer's log-ratio less the rejected one's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), [P]: the loss of every pair.

    Without margins the pairwise ranking loss of arXiv:2203.02155 (eq. 1), with them that of Llama 2
    (arXiv:2307.09288, eq. 2): a pair that is clearly told apart by its annotators must be so by its scores.
    Finite for every finite score.
    """
    return -logsigmoid(chosen - rejected - margins)


def dpo(lead: Tensor, margins: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (arXiv:2305.18290, eq. 7): [P], [P] -> [P], log 2 at the reference.

    With x = beta lead - margin it is -(1 - s) log sigmoid(x) - s log sigmoid(-x): margins as the offset of
    arXiv:2402.10571, and smoothing s as the chance that a label is wrong (conservative DPO).

    Args:
        lead: carries the gradient.
        margins: by how much beta lead has to exceed 0.
        label_smoothing: in [0, 0.5).
    """
    x = beta * lead - margins
    return -(1 - label_smoothing) * logsigmoid(x) - label_smoothing * logsigmoid(-x)


def ipo(lead: Tensor, beta: float) -> Tensor:
    """(lead - 1 / (2 beta))^2 (arXiv:2310.12036, eq. 17, with their tau as beta): [P] -> [P].

    Unlike DPO's it is least at a finite lead, however sure the preference.
    """
    return (lead - 1 / (2 * beta)).square()


def kto(log_ratios: Tensor, reference_point: Tensor, weights: Tensor, beta: float) -> Tensor:
    """Kahneman-Tversky optimisation (arXiv:2402.01306, eq. 8) of single answers: [M], [M], [M] -> [M].

    w (1 - sigmoid(beta (log-ratio - z0))) of a desirable answer, w (1 - sigmoid(beta (z0 - log-ratio))) of an
    undesirable one: in [0, w].

    Args:
        log_ratios: carry the gradient.
        reference_point: z0, without gradient.
        weights: w of a desirable answer, -w of an undesirable one.
    """
    return weights.abs() * torch.sigmoid(-weights.sign() * beta * (log_ratios - reference_point))
