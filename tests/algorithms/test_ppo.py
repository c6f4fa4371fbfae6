"""PPO: a table, a naive oracle of actor and critic, and the laws."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import whiten
from rlft.algorithms.ppo import clipped_critic, ppo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

OPTIONS = [
    {},
    {"gamma": 0.9, "lam": 0.5, "discount": "turn", "normalize": False},
    {"kl_coef": 0.2},
    {"kl_coef": 0.2, "kl_in": "loss", "kl": "k3", "value_clip": None},
    {"overlong": "filter", "is_cap": 2.0, "clip_high": 0.3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(ppo(**options), baseline=False)


def worked():
    """One row: two prompt tokens, two of turn 0, one of the environment, one of turn 1."""
    batch = example_batch((1,), tokens=6)
    turn_ids = torch.tensor([[-1, -1, 0, 0, -1, 1]])
    return replace(
        batch,
        attention_mask=torch.ones_like(batch.attention_mask),
        loss_mask=turn_ids >= 0,
        turn_ids=turn_ids,
        rewards=torch.tensor([[0, 0, 0, 1.0, 0, 2.0]]),
        values=torch.tensor([[9, 9, 0.5, 1.0, 9, 2.0]]),
    )


def test_advantages_and_returns_as_worked_by_hand():
    # gamma = lam = 0.5. Deltas: 0.5 * 1 - 0.5 = 0, 1 + 0.5 * 2 - 1 = 1, 2 - 2 = 0. Advantages: 0.25 * 1, 1, 0.
    filled = ppo(gamma=0.5, lam=0.5, normalize=False).advantages(worked(), lambda x: x)
    assert filled.advantages.tolist() == [[0, 0, 0.25, 1, 0, 0]] and filled.returns.tolist() == [[0, 0, 0.75, 2, 0, 2]]
    whitened = ppo(gamma=0.5, lam=0.5).advantages(worked(), lambda x: x)
    assert torch.equal(whitened.returns, filled.returns)
    assert torch.equal(whitened.advantages, whiten(filled.advantages, filled.loss_mask, lambda x: x))


def trained(batch):
    """(row, position) of every trained token in the order of its trajectory."""
    tokens = [(int(batch.turn_ids[b, t]), b, t) for b, t in batch.loss_mask.nonzero().tolist()]
    return {m: [(b, t) for _, b, t in sorted(tokens) if batch.traj_ids[b] == m] for m in set(batch.traj_ids.tolist())}


def test_a_step_of_actor_and_critic_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 1, 5), seed=9)
    g, low, high, kl_coef, gamma, lam = torch.Generator().manual_seed(0), 0.1, 0.3, 0.2, 0.9, 0.7
    algorithm = ppo(low, high, gamma, lam, kl_coef=kl_coef, value_clip=0.25)
    filled = algorithm.advantages(batch, lambda x: x)
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=g)
    values = batch.values + 0.5 * torch.randn(batch.token_ids.shape, generator=g)
    policy_loss, value_loss = algorithm.loss(new, filled)[0], algorithm.value_loss(values, filled)[0]
    raw, returns = {}, {}
    for tokens in trained(batch).values():
        reward = [float(batch.rewards[p] - kl_coef * (batch.old_logprobs[p] - batch.ref_logprobs[p])) for p in tokens]
        v = [*(float(batch.values[p]) for p in tokens), 0.0]
        for i, p in enumerate(tokens):
            raw[p] = sum((gamma * lam) ** (j - i) * (reward[j] + gamma * v[j + 1] - v[j]) for j in range(i, len(tokens)))
            returns[p] = raw[p] + v[i]
    mean, std = statistics.fmean(raw.values()), statistics.pstdev(raw.values())
    for p in raw:
        advantage, ratio = (raw[p] - mean) / (std + 1e-6), math.exp(float(new[p] - batch.old_logprobs[p]))
        assert float(policy_loss[p]) == pytest.approx(-min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage), abs=1e-4)
        old, now = float(batch.values[p]), float(values[p])
        near = min(max(now, old - 0.25), old + 0.25)
        assert float(value_loss[p]) == pytest.approx(max((now - returns[p]) ** 2, (near - returns[p]) ** 2) / 2, abs=1e-4)
    assert policy_loss[~batch.loss_mask].abs().sum() == value_loss[~batch.loss_mask].abs().sum() == 0


def test_on_policy_the_gradient_is_minus_the_advantage_and_the_critics_points_to_the_return():
    algorithm, batch = ppo(), example_batch()
    filled = algorithm.advantages(batch, lambda x: x)
    logprobs, values = batch.old_logprobs.clone().requires_grad_(), batch.values.clone().requires_grad_()
    algorithm.loss(logprobs, filled)[0].sum().backward()
    algorithm.value_loss(values, filled)[0].sum().backward()
    assert torch.equal(logprobs.grad, -filled.advantages) and filled.advantages.any()
    torch.testing.assert_close(values.grad, torch.where(batch.loss_mask, batch.values - filled.returns, 0.0))


def test_the_critics_metrics_are_values_squared_errors_and_what_is_clipped():
    batch = replace(worked(), returns=torch.tensor([[0, 0, 1.0, 1.0, 0, 2.0]]))
    loss, metrics = clipped_critic(0.25)(torch.tensor([[7, 7, 1.0, 1.0, 7, 2.5]]), batch)
    # Token 2 went from 0.5 to 1, its return: bounded at 0.75, so the error is 0.25. Token 5 went away from its return.
    assert loss.tolist() == [[0, 0, 0.25**2 / 2, 0, 0, 0.5**2 / 2]]
    assert metrics["critic/mean"].tolist() == [[0, 0, 1.0, 1.0, 0, 2.5]] and metrics["critic/clipped"].tolist() == [[0, 0, 1, 0, 0, 0]]
    assert metrics["critic/error"].tolist() == [[0, 0, 0, 0, 0, 0.25]]


def test_it_needs_a_critic():
    assert ppo().needs == {"old_logprobs", "values"} and ppo(kl_coef=0.1).needs == {"old_logprobs", "values", "ref_logprobs"}
    with pytest.raises(ValueError, match="not filled"):
        ppo().advantages(replace(example_batch(), values=None), lambda x: x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.1}, "algorithm.gamma: expected 0 to 1, got 1.1"),
        ({"lam": -0.1}, "algorithm.lam: expected 0 to 1, got -0.1"),
        ({"discount": "step"}, "algorithm.discount: expected one of token, turn, got 'step'"),
        ({"discount": "turn", "lam": 1.0}, "algorithm.discount: expected 'token' where gamma and lam are 1, got 'turn'"),
        ({"value_clip": 0.0}, "algorithm.value_clip: expected more than 0, got 0.0"),
        ({"clip_low": 2.0}, "algorithm.clip_low: expected 0 to 1, got 2.0"),
    ],
)
def test_an_option_that_is_wrong_or_does_not_apply_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        ppo(**options)
    assert str(error.value) == message
