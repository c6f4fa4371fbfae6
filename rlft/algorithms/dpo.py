"""Direct preference optimisation on pairs of a step's trajectories, and what follows from it: IPO and SPIN."""

from __future__ import annotations

from torch import Tensor

from rlft.algorithms import preference
from rlft.algorithms.base import Algorithm
from rlft.algorithms.pairs import Rule, pairs_by_demonstration, pairs_by_reward
from rlft.algorithms.pairwise import check_pairing, over_pairs
from rlft.algorithms.policy_gradient import expect, is_number


def dpo(
    beta: float = 0.1,
    pairs: Rule = "best_worst",
    threshold: float = 1.0,
    min_gap: float = 0.0,
    margin_coef: float = 0.0,
    label_smoothing: float = 0.0,
    suffix: bool = False,
) -> Algorithm:
    """-log sigmoid(beta lead - margin), mean over pairs (arXiv:2305.18290); on groups of rollouts, iterative DPO from a reward.

    The reference is the run's first policy, or with a stage's reference = "stage" the one that the stage starts from.

    Args:
        beta: strength of the pull to the reference, per nat.
        pairs: how a group is paired, see `pairs.build_pairs`.
        threshold: the total from which a trajectory is right, for "correct_wrong".
        min_gap: least difference of the totals of a pair, for the other rules.
        margin_coef: the margin is this times the difference of the totals (DPO with an offset, arXiv:2402.10571).
        label_smoothing: chance that a label is wrong, in [0, 0.5).
        suffix: train a pair from where its sides part, see `pairs.diverging`: the same loss and gradient from fewer tokens.

    Raises:
        ConfigError: a value out of range, or an option that does not apply to the others.
    """
    check_pairing(beta, pairs, threshold, min_gap)
    expect(is_number(margin_coef, 0), "margin_coef", "at least 0", margin_coef)
    expect(is_number(label_smoothing, 0) and label_smoothing < 0.5, "label_smoothing", "0 to below 0.5", label_smoothing)

    def per_pair(lead: Tensor, gaps: Tensor) -> Tensor:
        return preference.dpo(lead, margin_coef * gaps, beta, label_smoothing)

    return over_pairs("dpo", pairs_by_reward(pairs, threshold, min_gap, suffix), per_pair)


def ipo(
    beta: float = 0.1, pairs: Rule = "best_worst", threshold: float = 1.0, min_gap: float = 0.0, suffix: bool = False, average: bool = True
) -> Algorithm:
    """(lead - 1 / (2 beta))^2, mean over pairs (arXiv:2310.12036). Options as `dpo`'s.

    Args:
        average: log-ratios are means over the trained tokens of a side, as the paper's authors confirmed of theirs: long answers
            need no larger lead. With `suffix` over those from where the sides part. False takes sums.
    """
    check_pairing(beta, pairs, threshold, min_gap)
    return over_pairs("ipo", pairs_by_reward(pairs, threshold, min_gap, suffix), lambda lead, gaps: preference.ipo(lead, beta), average)


def spin(beta: float = 0.1, suffix: bool = False) -> Algorithm:
    """Self-play (arXiv:2401.01335): DPO with the task's demonstration over the policy's own answer; rewards play no part.

    The paper's opponent is the policy of the iteration before, and is the reference too. Here the answers are sampled
    anew in every step; a stage with reference = "stage" is one iteration.
    """
    expect(is_number(beta) and beta > 0, "beta", "more than 0", beta)

    def per_pair(lead: Tensor, gaps: Tensor) -> Tensor:
        return preference.dpo(lead, 0 * gaps, beta)

    return over_pairs("spin", pairs_by_demonstration(suffix), per_pair, needs=("demonstrations",), min_group=1, by_outcome=False)
