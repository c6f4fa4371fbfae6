"""Which tokens Clip-Cov and KL-Cov choose: by hand, by sorting, and whoever holds the rows."""

from dataclasses import replace

import pytest
import torch

from rlft.algorithms.covariance import _draws, _mixed, covariance, highest, random_in_band
from rlft.testing.checks import example_batch, on_ranks


def identity(x):
    return x


def many_rows(rows=400, tokens=50):
    g = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, 30, (rows, tokens), generator=g)
    return token_ids, torch.rand(rows, tokens, generator=g) < 0.8, torch.randn(rows, tokens, generator=g)


def test_covariances_are_as_worked_by_hand():
    # Means over the three trained tokens: log p (-1 - 2 - 6) / 3 = -3, advantages (2 - 1 - 1) / 3 = 0.
    logprobs = torch.tensor([[-1.0, torch.nan], [-2.0, -6.0]], requires_grad=True)
    advantages = torch.tensor([[2.0, 50.0], [-1.0, -1.0]])
    mask = torch.tensor([[True, False], [True, True]])
    got = covariance(logprobs, advantages, mask, identity)
    assert got.tolist() == [[4.0, 0.0], [-1.0, 3.0]] and not got.requires_grad  # 2 * 2, 1 * -1, -3 * -1


def test_covariances_sum_up_to_n_times_the_covariance_of_both():
    token_ids, mask, logprobs = many_rows()
    advantages = 0.3 * logprobs + torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2))
    got = covariance(logprobs, advantages, mask, identity)
    want = torch.cov(torch.stack([logprobs[mask], advantages[mask]]), correction=0)[0, 1]
    torch.testing.assert_close(got[mask].mean(), want, rtol=1e-4, atol=1e-5)


def test_equal_advantages_have_no_covariance_and_no_token_is_chosen():
    token_ids, mask, logprobs = many_rows(8)
    got = covariance(logprobs, torch.full_like(logprobs, 0.5), mask, identity)
    assert not got.any() and not highest(got, mask, 0.5, identity).any()
    assert highest(got + 0.25, mask, 0.5, identity).any()  # the control


def test_the_highest_are_those_that_sorting_gives():
    _, mask, covariances = many_rows(40)
    for fraction in (0.001, 0.01, 0.2, 0.4):
        wanted = int(fraction * int(mask.sum()))
        least = covariances[mask].sort(descending=True).values[wanted - 1]
        got = highest(covariances, mask, fraction, identity)
        assert int(got.sum()) == wanted and torch.equal(got, mask & (covariances >= least))


@pytest.mark.parametrize(
    ("covariances", "fraction", "chosen"),
    [
        ([1.0, 3.0, 2.0, -9.0, 0.0], 0.4, [0, 1, 1, 0, 0]),  # two of five
        ([1.0, 3.0, 2.0, -9.0, 0.0], 0.01, [0, 1, 0, 0, 0]),  # at least one
        ([2.0, 3.0, 2.0, -9.0, 0.0], 0.4, [1, 1, 1, 0, 0]),  # as high as the last one chosen
        ([1.0, 3.0, 2.0, -9.0, 0.0], 1.0, [1, 1, 1, 0, 0]),  # never what is not positive
        ([1e-30, -1.0, -2.0, -9.0, 0.0], 0.4, [1, 0, 0, 0, 0]),
        ([1e30, 1.0, 2.0, 3.0, 0.0], 0.2, [1, 0, 0, 0, 0]),
    ],
)
def test_the_highest_are_chosen_as_worked_by_hand(covariances, fraction, chosen):
    mask = torch.ones(1, 5, dtype=torch.bool)
    assert highest(torch.tensor([covariances]), mask, fraction, identity).tolist() == [[bool(x) for x in chosen]]


def test_tokens_off_the_mask_are_never_chosen_and_do_not_count():
    mask = torch.tensor([[False, True, True, False]])
    assert highest(torch.tensor([[9.0, 1.0, 2.0, 9.0]]), mask, 0.5, identity).tolist() == [[False, False, True, False]]
    ids, seeds = torch.arange(4)[None], torch.zeros(1, dtype=torch.int64)
    got = random_in_band(torch.full((1, 4), 2.0), mask, 1.0, 5.0, 1.0, ids, seeds, identity)
    assert torch.equal(got, mask)


def test_of_the_band_alone_a_share_of_all_tokens_is_chosen():
    token_ids, mask, covariances = many_rows()
    band = mask & (covariances >= 0.5) & (covariances <= 1.5)
    chosen = random_in_band(covariances, mask, 0.5, 1.5, 0.05, token_ids, torch.arange(400), identity)
    wanted = 0.05 * float(mask.sum())
    assert not (chosen & ~band).any()
    assert abs(int(chosen.sum()) - wanted) < 4 * wanted**0.5  # a binomial's spread is below the root of its mean
    assert float(band.sum()) > 3 * wanted  # the control: the band holds far more


def test_a_band_with_fewer_tokens_than_wanted_is_chosen_whole():
    token_ids, mask, covariances = many_rows(20)
    chosen = random_in_band(covariances, mask, 2.0, 9.0, 0.5, token_ids, torch.zeros(20, dtype=torch.int64), identity)
    assert torch.equal(chosen, mask & (covariances >= 2.0) & (covariances <= 9.0)) and chosen.any()


def test_the_bounds_of_the_band_belong_to_it():
    mask, seeds = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    covariances = torch.tensor([[0.99, 1.0, 5.0, 5.01]])
    got = random_in_band(covariances, mask, 1.0, 5.0, 1.0, torch.arange(4)[None], seeds, identity)
    assert got.tolist() == [[False, True, True, False]]


def choices(batch, reduce):
    found = covariance(batch.old_logprobs, batch.advantages, batch.loss_mask, reduce)
    band = random_in_band(found, batch.loss_mask, -0.2, 0.5, 0.2, batch.token_ids, batch.policy_versions, reduce)
    return band, highest(found, batch.loss_mask, 0.1, reduce)


def filled_batch():
    batch = example_batch((4, 3, 5, 2), tokens=30, seed=3)
    return replace(batch, advantages=batch.rewards.sum(-1, keepdim=True) * batch.loss_mask)


def test_the_choice_does_not_depend_on_which_rank_holds_which_row():
    batch = filled_batch()
    whole = choices(batch, identity)
    held = [batch.group_ids < 2, batch.group_ids == 2, batch.group_ids == 3]
    parts = on_ranks(lambda rows, reduce: choices(batch.rows(rows), reduce), held)
    for rows, part in zip(held, parts, strict=True):
        assert all(torch.equal(one, all_rows[rows]) for one, all_rows in zip(part, whole, strict=True))
    alone = [choices(batch.rows(rows), identity) for rows in held]  # the control: each rank for itself
    assert any(not torch.equal(one[1], whole[1][rows]) for rows, one in zip(held, alone, strict=True))


def test_the_choice_does_not_depend_on_row_order_or_padding():
    batch = filled_batch()
    whole = choices(batch, identity)
    order = torch.randperm(len(batch.traj_ids), generator=torch.Generator().manual_seed(0))
    turned = choices(batch.rows(order), identity)
    wide = choices(batch.map_tokens(lambda x: torch.nn.functional.pad(x, (0, 7))), identity)
    for one, moved, padded in zip(whole, turned, wide, strict=True):
        assert one.any() and torch.equal(moved, one[order]) and torch.equal(padded[:, :30], one) and not padded[:, 30:].any()


def test_draws_are_uniform_and_follow_from_the_rows_beginning_and_its_seed():
    token_ids = torch.randint(0, 50, (500, 40), generator=torch.Generator().manual_seed(0))
    draws = _draws(token_ids, torch.zeros(500, dtype=torch.int64)).flatten()
    assert ((draws >= 0) & (draws < 1)).all() and abs(float(draws.mean()) - 0.5) < 0.01
    assert torch.histc(draws, 10, 0, 1).sub(2000).abs().max() < 200  # 4.7 times the spread of a bin

    changed = token_ids.clone()
    changed[:, 20] += 1
    seeds = torch.zeros(500, dtype=torch.int64)
    same = _draws(token_ids, seeds) == _draws(changed, seeds)
    assert same[:, :20].all() and not same[:, 20:].any()
    assert not (_draws(token_ids, seeds) == _draws(token_ids, seeds + 1)).any()


def test_the_order_of_tokens_in_a_row_counts():
    seeds = torch.zeros(1, dtype=torch.int64)
    assert _draws(torch.tensor([[3, 4, 9]]), seeds)[0, 2] != _draws(torch.tensor([[4, 3, 9]]), seeds)[0, 2]


def test_the_mixing_is_splitmix64s():
    # The first outputs of the reference implementation from the seed 1234567.
    state = [(1234567 + i * 0x9E3779B97F4A7C15) % 2**64 for i in range(3)]
    signed = torch.tensor([x - 2**64 if x >= 2**63 else x for x in state])
    assert [int(x) % 2**64 for x in _mixed(signed)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
