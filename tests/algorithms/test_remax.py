"""ReMax: a table, a naive oracle, and the laws."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.masking import loss_weights
from rlft.algorithms.remax import remax
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.2}, {"kl_coef": 0.2, "kl_in": "reward"}, {"overlong": "filter"}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(remax(**options), baseline=False)


def test_advantages_as_worked_by_hand():
    batch = example_batch((2, 1))
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([1.0, 0.25, 5.0])
    given = replace(batch, rewards=rewards, baselines=torch.tensor([0.25, 0.25, 6.0]))
    expected = torch.tensor([0.75, 0.0, -1.0])[:, None].expand_as(rewards)
    got = remax().advantages(given, lambda x: x).advantages
    assert got.tolist() == torch.where(batch.loss_mask, expected, 0.0).tolist()


def test_a_step_agrees_with_a_naive_oracle():
    batch = example_batch((4, 3, 1), seed=5)
    algorithm = remax(clip_low=0.1)
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    got, _ = algorithm.loss(new, algorithm.advantages(batch, lambda x: x))
    for b, m in enumerate(batch.traj_ids.tolist()):
        rows = [i for i, n in enumerate(batch.traj_ids.tolist()) if n == m]
        advantage = sum(float(batch.rewards[i].sum()) for i in rows) - float(batch.baselines[b])
        for t in range(12):
            ratio = math.exp(float(new[b, t] - batch.old_logprobs[b, t]))
            want = -min(ratio * advantage, min(max(ratio, 0.9), 1.2) * advantage) if batch.loss_mask[b, t] else 0.0
            assert float(got[b, t]) == pytest.approx(want, abs=1e-5)


def test_a_constant_added_to_both_rewards_changes_nothing():
    batch = example_batch((3, 2))
    one_token = torch.zeros_like(batch.rewards)
    one_token[[0, 2, 3, 4, 5], 3] = 8.0
    plain = remax().advantages(batch, lambda x: x).advantages
    shifted = replace(batch, rewards=batch.rewards + one_token, baselines=batch.baselines + 8.0)
    assert torch.equal(remax().advantages(shifted, lambda x: x).advantages, plain)
    assert not torch.equal(remax().advantages(replace(shifted, baselines=batch.baselines), lambda x: x).advantages, plain)


def test_a_task_whose_greedy_answer_was_not_graded_leaves_the_loss_and_its_denominators():
    given = example_batch((3, 2, 1))
    out = given.group_ids == 1
    filled = remax(is_cap=2.0).advantages(replace(given, baselines=torch.where(out, torch.nan, given.baselines)), lambda x: x)
    whole = remax(is_cap=2.0).advantages(given, lambda x: x)  # the control: with a baseline it is trained
    assert whole.loss_mask[out].any() and whole.advantages[out].any()
    assert not filled.loss_mask[out].any() and not filled.advantages[out].any() and not filled.is_weights[out].any()
    for name in ("loss_mask", "advantages", "is_weights"):
        assert torch.equal(getattr(filled, name)[~out], getattr(whole, name)[~out])
    rest = given.rows(~out)
    got, want = (loss_weights(b.loss_mask, b.traj_ids, "token", lambda x: x) for b in (filled, rest))
    assert torch.equal(got[~out], want)


def test_it_needs_greedy_answers():
    assert remax().needs == {"old_logprobs", "baselines"}
    with pytest.raises(ValueError, match="not filled"):
        remax().advantages(replace(example_batch(), baselines=None), lambda x: x)


def test_an_option_that_is_wrong_says_so():
    with pytest.raises(ConfigError, match="algorithm.clip_low: expected 0 to 1, got -1"):
        remax(clip_low=-1)
