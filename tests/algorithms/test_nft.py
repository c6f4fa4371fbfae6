"""NFT as a method: the policy gradient on-policy, groups without signal, pass rates of the run."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.grpo import grpo
from rlft.algorithms.nft import nft
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

OPTIONS = [
    {},
    {"weight": "sqrt", "negative_weight": 0.5, "kl_coef": 0.1},
    {"weight": "none", "eps_wrong": 0.3, "eps_right": 0.5, "overlong": "filter", "is_cap": 2.0},
    {"level": "sequence", "eps_wrong": 0.2},
    {"pass_rate": "ledger", "weight": "sqrt"},
]


def identity(x):
    return x


def graded(group_sizes=(4, 3, 2, 1), seed=0):
    """Rewards 1 and 0: of group 0 some are right, of 1 one, of 2 all, of 3 (a lone member) none."""
    batch = example_batch(group_sizes, seed=seed)
    right = torch.isin(batch.traj_ids, torch.tensor([0, 2, 5, 7, 8]))
    last = torch.arange(12) == batch.attention_mask.sum(-1, keepdim=True) - 1
    first_row = torch.ones(len(right), dtype=torch.bool)
    first_row[1:] = batch.traj_ids[1:] != batch.traj_ids[:-1]
    return replace(batch, rewards=(last & right[:, None] & first_row[:, None]).float()), right


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(nft(threshold=0.25, **options), baseline=False)


@pytest.mark.parametrize(("weight", "normalize"), [("1-p", False), ("sqrt", True)])
def test_on_policy_its_gradient_is_grpos(weight, normalize):
    given, _ = graded()
    gradients = []
    for algorithm in (nft(weight=weight), grpo(normalize=normalize)):
        logprobs = given.old_logprobs.clone().requires_grad_()
        algorithm.loss(logprobs, algorithm.advantages(given, identity))[0].sum().backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
    assert gradients[0].any()


def test_on_policy_an_unweighted_task_differs_from_grpo_by_a_positive_factor():
    given, _ = graded()
    logprobs = given.old_logprobs.clone().requires_grad_()
    nft(weight="none").loss(logprobs, nft(weight="none").advantages(given, identity))[0].sum().backward()
    want = -grpo(normalize=False).advantages(given, identity).advantages
    for group, p in ((0, 1 / 2), (1, 1 / 3)):
        rows = given.group_ids == group
        torch.testing.assert_close(logprobs.grad[rows], want[rows] / (1 - p))


@pytest.mark.parametrize(
    ("options", "right", "wrong"),  # at log-ratio 0.5 in group 0, p = 1/2
    [
        ({"weight": "none", "eps_wrong": 0.1}, -0.5, -math.log(2 - math.exp(0.5))),
        ({"weight": "1-p", "eps_wrong": 0.1}, -0.25, -0.5 * math.log(2 - math.exp(0.5))),
        ({"weight": "sqrt", "negative_weight": 0.25, "eps_wrong": 0.1}, -0.5, -0.25 * math.log(2 - math.exp(0.5))),
        ({"weight": "none"}, -0.5, 0.0),  # held at 1
        ({"weight": "none", "negative_weight": 0.0, "eps_wrong": 0.1}, -0.5, 0.0),
    ],
    ids=str,
)
def test_a_tokens_loss_is_as_worked_by_hand(options, right, wrong):
    given, is_right = graded()
    batch = nft(**options).advantages(given, identity)
    loss, metrics = nft(**options).loss(given.old_logprobs + 0.5, batch)
    on = given.loss_mask & (given.group_ids == 0)[:, None]
    for i, t in on.nonzero().tolist():
        assert float(loss[i, t]) == pytest.approx(right if is_right[i] else wrong, rel=1e-4, abs=1e-6)
        assert bool(metrics["nft/right"][i, t]) is bool(is_right[i])


def test_groups_all_right_or_all_wrong_have_no_part_in_it():
    given, _ = graded()
    batch = nft(weight="none").advantages(given, identity)
    out = (given.group_ids >= 2)[:, None].expand_as(given.loss_mask)
    assert not batch.advantages[out].any() and batch.advantages[~out & given.loss_mask].all()


def test_with_the_ledger_an_answer_counts_against_the_run():
    given, is_right = graded()
    given = replace(given, pass_rates=torch.tensor([0.5, 0.2, 0.9, 0.3])[given.group_ids])
    batch = nft(pass_rate="ledger").advantages(given, identity)
    for i, t in given.loss_mask.nonzero().tolist():
        p = float(given.pass_rates[i])
        assert float(batch.advantages[i, t]) == pytest.approx((1 - p) * (1 if is_right[i] else -1))
    loss, _ = nft(pass_rate="ledger", eps_wrong=0.1).loss(given.old_logprobs - 0.5, batch)
    i, t = (given.loss_mask & (given.group_ids == 3)[:, None]).nonzero()[0].tolist()
    assert float(loss[i, t]) == pytest.approx(-0.7 * math.log((1 - 0.3 * math.exp(-0.5)) / 0.7), rel=1e-4)


@pytest.mark.parametrize(("rate", "p"), [(0.0, 0.02), (1.0, 0.98)])
def test_pass_rates_at_their_ends_give_finite_weights(rate, p):
    given, _ = graded()
    given = replace(given, pass_rates=torch.full((len(given.traj_ids),), rate))
    batch = nft(pass_rate="ledger", weight="sqrt").advantages(given, identity)
    assert batch.advantages[given.loss_mask].abs().unique().tolist() == pytest.approx([math.sqrt((1 - p) / p)])


def test_an_answer_is_right_from_the_threshold_on():
    given = example_batch((3,))
    rewards = torch.zeros_like(given.rewards)
    rewards[[0, 2, 3], 3] = torch.tensor([0.5, 0.49, 0.9])  # trajectory 0 has two rows
    batch = nft(threshold=0.5, weight="none").advantages(replace(given, rewards=rewards), identity)
    first = [float(batch.advantages[i][given.loss_mask[i]][0]) for i in range(4)]
    assert first == [1.0, 1.0, -1.0, 1.0] and batch.pass_rates.tolist() == pytest.approx([2 / 3] * 4)


def test_a_sequence_needs_whole_trajectories_and_a_token_does_not():
    assert (nft(level="sequence").unit, nft(level="sequence").aggregation) == ("trajectory", "sequence")
    assert (nft().unit, nft().aggregation) == ("row", "token")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pass_rate": "run"}, "algorithm.pass_rate: expected one of group, ledger, got 'run'"),
        ({"weight": "p"}, "algorithm.weight: expected one of none, 1-p, sqrt, got 'p'"),
        ({"level": "turn"}, "algorithm.level: expected one of token, sequence, got 'turn'"),
        ({"negative_weight": -1}, "algorithm.negative_weight: expected at least 0, got -1"),
        ({"eps_right": -1}, "algorithm.eps_right: expected at least 0, got -1"),
        ({"eps_wrong": 0}, "algorithm.eps_wrong: expected more than 0, got 0"),
        ({"threshold": "half"}, "algorithm.threshold: expected a number, got 'half'"),
        ({"kl_coef": 0.1, "kl": "k1", "kl_in": "reward"}, "algorithm.kl_in: expected 'loss', got 'reward'"),
    ],
)
def test_wrong_options_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        nft(**options)
