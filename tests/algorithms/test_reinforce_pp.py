"""REINFORCE++ and its group baseline: naive oracles, tables and laws."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import whiten
from rlft.algorithms.reinforce_pp import reinforce_pp, reinforce_pp_baseline
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.2}, {"kl_coef": 0.2, "kl_in": "loss", "kl": "k2"}, {"is_cap": 1.5}], ids=str)
def test_reinforce_pp_keeps_the_laws(options):
    check_algorithm(reinforce_pp(**options), baseline=False)


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.2}, {"kl_coef": 0.2, "kl_in": "reward"}, {"overlong": "filter"}], ids=str)
def test_the_variant_with_a_baseline_keeps_the_laws(options):
    check_algorithm(reinforce_pp_baseline(**options))


def trained(batch):
    """(row, position) of every trained token in the order of its trajectory."""
    tokens = [(int(batch.turn_ids[b, t]), b, t) for b, t in batch.loss_mask.nonzero().tolist()]
    return {m: [(b, t) for _, b, t in sorted(tokens) if batch.traj_ids[b] == m] for m in set(batch.traj_ids.tolist())}


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_a_step_agrees_with_a_naive_oracle(kl_coef):
    batch = example_batch((4, 3, 1, 5), seed=4)
    algorithm = reinforce_pp(clip_high=0.3, **({"kl_coef": kl_coef} if kl_coef else {}))
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    got, _ = algorithm.loss(new, algorithm.advantages(batch, lambda x: x))
    to_go = {}
    for tokens in trained(batch).values():
        for i, place in enumerate(tokens):
            to_go[place] = sum(float(batch.rewards[p] - kl_coef * (batch.old_logprobs[p] - batch.ref_logprobs[p])) for p in tokens[i:])
    mean, std = statistics.fmean(to_go.values()), statistics.pstdev(to_go.values())
    for p, value in to_go.items():
        advantage, ratio = (value - mean) / (std + 1e-6), math.exp(float(new[p] - batch.old_logprobs[p]))
        assert float(got[p]) == pytest.approx(-min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage), abs=1e-5)


def test_a_token_bears_its_own_penalty_and_its_successors():
    batch = example_batch((1,))
    ref = batch.old_logprobs - batch.loss_mask * torch.arange(12.0)
    given = replace(batch, rewards=torch.zeros_like(batch.rewards), ref_logprobs=ref)
    advantages = reinforce_pp(kl_coef=1.0).advantages(given, lambda x: x).advantages[batch.loss_mask]
    places = batch.loss_mask[0].nonzero()[:, 0].tolist()
    assert len(places) > 3
    penalties = torch.tensor([-float(sum(places[i:])) for i in range(len(places))])
    torch.testing.assert_close(advantages, (penalties - penalties.mean()) / penalties.std(correction=0), rtol=0, atol=1e-4)


def test_equal_rewards_give_exactly_zero_without_a_penalty():
    batch = example_batch((1, 1, 1))
    last = batch.attention_mask.sum(-1, keepdim=True) - 1 == torch.arange(12)
    advantages = reinforce_pp().advantages(replace(batch, rewards=torch.where(last, 0.1, 0.0)), lambda x: x).advantages
    assert not advantages.any()


def test_the_baseline_is_the_groups_and_the_scale_the_steps():
    batch = example_batch((2, 2, 1))
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([1.0, 0.0, 0.5, 0.5, 9.0])
    given = replace(batch, rewards=rewards)
    advantages = reinforce_pp_baseline().advantages(given, lambda x: x).advantages
    # Centered 1/2, -1/2, 0, 0, 0 on each token; about 0 the std is 1/2 times the root of the share of the first two rows.
    n = batch.loss_mask.sum(-1)
    scaled = 1 / math.sqrt(float(n[:2].sum() / n.sum()))
    expected = torch.tensor([scaled, -scaled, 0, 0, 0])[:, None].expand_as(rewards)
    torch.testing.assert_close(advantages, torch.where(batch.loss_mask, expected, 0.0), rtol=0, atol=1e-4)
    assert not advantages[2:].any()
    assert whiten(advantages, batch.loss_mask, lambda x: x)[2:].any()  # the control: a second centering is no longer exactly 0


def test_with_a_baseline_the_kl_is_k2_in_the_loss():
    batch = example_batch()
    with_kl, without = reinforce_pp_baseline(kl_coef=0.5), reinforce_pp_baseline()
    filled = with_kl.advantages(batch, lambda x: x)
    got = with_kl.loss(batch.old_logprobs, filled)[0] - without.loss(batch.old_logprobs, filled)[0]
    k2 = torch.where(batch.loss_mask, (batch.old_logprobs - batch.ref_logprobs).square() / 2, 0.0)
    torch.testing.assert_close(got, 0.5 * k2)


def test_an_option_that_does_not_apply_says_so():
    with pytest.raises(ConfigError, match="algorithm.kl_in needs kl_coef > 0"):
        reinforce_pp(kl_in="loss")
    with pytest.raises(ConfigError, match="algorithm.clip_high: expected at least 0, got -1"):
        reinforce_pp_baseline(clip_high=-1)
