"""VAPO: its own lambdas, its supervised loss on right answers, a naive oracle of a step, and the laws."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.algorithms.ppo import ppo
from rlft.algorithms.vapo import vapo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch, on_ranks


@pytest.mark.parametrize("options", [{}, {"right_at": 0.25, "length_alpha": 0.5}, {"kl_coef": 0.1, "value_clip": None}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(vapo(**options), baseline=False)


def rewarded(*rewards):
    batch = example_batch((len(rewards),) if len(rewards) < 3 else (1,) * len(rewards))
    earned = torch.zeros_like(batch.rewards)
    earned[torch.arange(len(rewards)), batch.attention_mask.sum(-1) - 1] = torch.tensor(rewards)
    return replace(batch, rewards=earned)


NAIVE = {"low": 0.1, "high": 0.3, "alpha": 0.5, "coef": 0.3, "right_at": 0.25, "critic_lam": 1.0, "value_clip": 0.25}


def naive_step(batch, new, values, *, low, high, alpha, coef, right_at, critic_lam, value_clip):
    """The step's loss, its slope at each trained token and the critic's loss, with loops over numbers."""
    placed = sorted((int(batch.turn_ids[b, t]), b, t) for b, t in batch.loss_mask.nonzero().tolist())
    raw, returns, right = {}, {}, []
    for m in set(batch.traj_ids.tolist()):
        tokens = [(b, t) for _, b, t in placed if batch.traj_ids[b] == m]
        reward, v = [float(batch.rewards[p]) for p in tokens], [*(float(batch.values[p]) for p in tokens), 0.0]
        deltas, lam = [reward[j] + v[j + 1] - v[j] for j in range(len(tokens))], max(0.0, 1 - 1 / (alpha * len(tokens)))
        for i, p in enumerate(tokens):
            raw[p] = sum(lam ** (j - i) * deltas[j] for j in range(i, len(tokens)))
            returns[p] = v[i] + sum(critic_lam ** (j - i) * deltas[j] for j in range(i, len(tokens)))
        if sum(reward) >= right_at:
            right += tokens
    mean, std, loss, slopes, of_critic = statistics.fmean(raw.values()), statistics.pstdev(raw.values()), 0.0, {}, 0.0
    for p in raw:
        advantage, ratio = (raw[p] - mean) / (std + 1e-6), math.exp(float(new[p] - batch.old_logprobs[p]))
        free, bounded = ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage
        loss -= min(free, bounded) / len(raw)
        slopes[p] = -free / len(raw) if free <= bounded else 0.0
        now, old = float(values[p]), float(batch.values[p])
        near = min(max(now, old - value_clip), old + value_clip)
        of_critic += max((now - returns[p]) ** 2, (near - returns[p]) ** 2) / 2 / len(raw)
    for p in right:
        loss -= coef * float(new[p]) / len(right)
        slopes[p] -= coef / len(right)
    return loss, slopes, of_critic


def test_a_whole_step_agrees_with_naive_loops_over_trajectories_and_tokens():
    batch, g = example_batch((4, 3, 1, 5), seed=9), torch.Generator().manual_seed(0)
    algorithm = vapo(0.1, 0.3, 0.5, positive_coef=0.3, right_at=0.25, value_clip=0.25)
    filled = algorithm.advantages(batch, lambda x: x)
    new = (batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=g)).requires_grad_()
    values = batch.values + 0.5 * torch.randn(batch.token_ids.shape, generator=g)
    weights = loss_weights(filled.loss_mask, filled.traj_ids, algorithm.aggregation, lambda x: x)
    total = weighted_sum(algorithm.loss(new, filled)[0], weights)
    (gradient,) = torch.autograd.grad(total, new)
    of_critic = weighted_sum(algorithm.value_loss(values, filled)[0], weights)
    loss, slopes, naive_critic = naive_step(batch, new.detach(), values, **NAIVE)
    assert (total.item(), of_critic.item()) == pytest.approx((loss, naive_critic), abs=1e-5)
    want = torch.zeros_like(gradient)
    for p, slope in slopes.items():
        want[p] = slope
    torch.testing.assert_close(gradient, want, atol=1e-6, rtol=1e-4)
    # The control: with a symmetric clip, PPO's lambda, no or fewer right answers, GAE's returns or a free value it is another number.
    for wrong in ({"high": 0.1}, {"alpha": 1e6}, {"coef": 0.0}, {"right_at": 1.0}, {"critic_lam": 0.95}, {"value_clip": 9.0}):
        other, _, other_critic = naive_step(batch, new.detach(), values, **{**NAIVE, **wrong})
        assert abs(other - loss) + abs(other_critic - naive_critic) > 1e-3, wrong


def test_the_policys_lambda_grows_with_the_length_and_the_critics_is_one():
    batch = rewarded(1.0, 0.0)
    filled = vapo(length_alpha=0.5).advantages(batch, lambda x: x)
    raw = []
    for b in range(2):
        values = batch.values[b][batch.loss_mask[b]].tolist()
        reward, length = float(batch.rewards[b].sum()), len(values)
        # Without a discount the returns are the reward that is still to come, whatever the critic says.
        assert filled.returns[b][batch.loss_mask[b]].tolist() == pytest.approx([reward] * length, abs=1e-5)
        lam = max(0.0, 1 - 1 / (0.5 * length))
        deltas = [after - before for before, after in zip(values, [*values[1:], reward], strict=True)]
        raw += [sum(lam ** (j - i) * deltas[j] for j in range(i, length)) for i in range(length)]
    mean, std = statistics.fmean(raw), statistics.pstdev(raw)
    assert filled.advantages[batch.loss_mask].tolist() == pytest.approx([(x - mean) / std for x in raw], abs=1e-4)


def test_right_answers_share_one_mean_cross_entropy():
    batch = rewarded(1.0, 0.5, 2.0)
    algorithm, plain = vapo(positive_coef=0.3), vapo(positive_coef=0.0)
    filled = algorithm.advantages(batch, lambda x: x)
    more = algorithm.loss(batch.old_logprobs, filled)[0] - plain.loss(batch.old_logprobs, filled)[0]
    n = batch.loss_mask.sum(-1)
    right = batch.loss_mask & torch.tensor([[True], [False], [True]])
    # The step's mean over all tokens: the weights make it a mean over those of right answers.
    assert float(more.sum() / n.sum()) == pytest.approx(-0.3 * float(batch.old_logprobs[right].mean()), abs=1e-5)
    assert not more[~right].any()
    assert filled.ce_weights[right].unique().tolist() == pytest.approx([float(n.sum() / n[[0, 2]].sum())])


def test_the_mean_is_over_right_answers_of_all_ranks():
    batch = rewarded(1.0, 0.5, 2.0)
    whole = vapo().advantages(batch, lambda x: x)
    one, other = on_ranks(vapo().advantages, [batch.rows([0]), batch.rows([1, 2])])
    torch.testing.assert_close(torch.cat([one.ce_weights, other.ce_weights]), whole.ce_weights)
    assert not torch.allclose(vapo().advantages(batch.rows([0]), lambda x: x).ce_weights, whole.ce_weights[:1])  # the control


def test_where_nothing_is_right_there_is_nothing_to_imitate():
    batch = rewarded(0.9, 0.0)
    assert not vapo().advantages(batch, lambda x: x).ce_weights.any()
    assert vapo(right_at=0.5).advantages(batch, lambda x: x).ce_weights[0].any()


def test_its_surrogate_and_critic_are_ppos_with_a_higher_upper_clip():
    algorithm, other, batch = vapo(positive_coef=0.0), ppo(clip_high=0.28), example_batch()
    filled = algorithm.advantages(batch, lambda x: x)
    new = batch.old_logprobs + 0.25
    assert torch.equal(algorithm.loss(new, filled)[0], other.loss(new, filled)[0])
    assert torch.equal(algorithm.value_loss(new, filled)[0], other.value_loss(new, filled)[0])
    assert not torch.equal(algorithm.loss(new, filled)[0], ppo().loss(new, filled)[0])
    assert algorithm.needs == other.needs == {"old_logprobs", "values"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length_alpha": 0.0}, "algorithm.length_alpha: expected more than 0, got 0.0"),
        ({"positive_coef": -1.0}, "algorithm.positive_coef: expected at least 0, got -1.0"),
        ({"right_at": "1"}, "algorithm.right_at: expected a number, got '1'"),
        ({"value_clip": -1.0}, "algorithm.value_clip: expected more than 0, got -1.0"),
    ],
)
def test_an_option_that_is_wrong_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        vapo(**options)
    assert str(error.value) == message


def test_the_supervised_share_is_a_mean_over_tokens_and_no_other_aggregation_is_taken():
    with pytest.raises(ConfigError, match="algorithm.aggregation: expected 'token'"):
        vapo(aggregation="sequence")
    assert vapo(aggregation="sequence", positive_coef=0.0).aggregation == "sequence"
