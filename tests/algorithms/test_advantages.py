"""Group baselines: tables, an oracle, and exactness where floats tempt to noise."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import (
    greedy_baseline,
    group_centered,
    group_mean,
    group_normalized,
    leave_one_out,
    of_trajectories,
    outcome,
    outcomes,
    parts_normalized,
    two_level,
    whiten,
)
from rlft.testing.checks import example_batch, on_ranks


def two_parts(totals, group_ids):
    return parts_normalized(torch.stack([totals, -3 * totals], -1), (1.0, 0.5), group_ids)


def within_modes(totals, group_ids):
    return two_level(totals, group_ids, torch.arange(len(totals)) % 2)[0]


def between_modes(totals, group_ids):
    return two_level(totals, group_ids, torch.arange(len(totals)) % 2)[1]


BY_GROUP = [group_centered, group_normalized, leave_one_out, two_parts]
ESTIMATORS = [*BY_GROUP, within_modes, between_modes]


def test_groups_are_centered_and_normalized_as_worked_by_hand():
    totals = torch.tensor([1.0, 0.0, 0.0, 1.0, 5.0, 2.0, 8.0])
    group_ids = torch.tensor([3, 3, 3, 3, 9, 0, 0])  # ids need not be dense or in order
    assert group_mean(totals, group_ids).tolist() == [0.5, 0.5, 0.5, 0.5, 5.0, 5.0, 5.0]
    assert group_centered(totals, group_ids).tolist() == [0.5, -0.5, -0.5, 0.5, 0.0, -3.0, 3.0]
    torch.testing.assert_close(group_normalized(totals, group_ids, eps=0.5), torch.tensor([0.5, -0.5, -0.5, 0.5, 0, -6 / 7, 6 / 7]))


def test_groups_agree_with_the_statistics_module():
    g = torch.Generator().manual_seed(3)
    totals, group_ids = torch.randn(40, generator=g), torch.randint(0, 7, (40,), generator=g)
    centered, normalized = group_centered(totals, group_ids), group_normalized(totals, group_ids)
    for i in range(40):
        members = [float(r) for r, group in zip(totals, group_ids, strict=True) if group == group_ids[i]]
        distance = float(totals[i]) - statistics.fmean(members)
        assert float(centered[i]) == pytest.approx(distance, abs=1e-6)
        assert float(normalized[i]) == pytest.approx(distance / (statistics.pstdev(members) + 1e-6), abs=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 1e6 + 0.1, 0.0])
@pytest.mark.parametrize("size", [1, 3, 6, 7, 11])
def test_equal_rewards_and_lone_members_get_exactly_zero(estimator, dtype, reward, size):
    totals = torch.tensor([reward] * size + [0.0, 1.0], dtype=dtype)
    advantages = estimator(totals, torch.tensor([0] * size + [1, 1]))
    assert advantages[:size].tolist() == [0.0] * size and advantages.dtype == dtype


def test_a_plain_mean_would_leave_noise_that_normalising_turns_into_advantages():
    x = torch.tensor([0.1] * 3, dtype=torch.float64)
    residue = x - (x[0] + x[1] + x[2]) / 3
    assert residue.any() and not group_centered(x, torch.zeros(3, dtype=torch.int64)).any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_constant_added_to_all_rewards_changes_nothing(estimator):
    totals, group_ids = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.5]), torch.tensor([0, 0, 0, 1, 1])
    for constant in (-3.0, 1e5):
        torch.testing.assert_close(estimator(totals + constant, group_ids), estimator(totals, group_ids), rtol=0, atol=1e-6)


def test_close_rewards_still_normalise_even_beside_a_large_offset():
    close = torch.tensor([0.5, 0.5001, 0.5002, 0.5001], dtype=torch.float64)
    group_ids = torch.zeros(4, dtype=torch.int64)
    for offset in (0.0, 1e6):
        out = group_normalized(close + offset, group_ids)
        assert float(out.square().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("estimator", BY_GROUP)
def test_the_order_of_trajectories_does_not_matter(estimator):
    g = torch.Generator().manual_seed(0)
    totals, group_ids = torch.randn(12, generator=g), torch.arange(12) % 4
    order = torch.randperm(12, generator=g)
    torch.testing.assert_close(estimator(totals[order], group_ids[order]), estimator(totals, group_ids)[order])


def test_a_trajectory_earns_the_rewards_of_all_its_rows():
    batch = example_batch((3, 2))  # trajectory 0 has rows 0 and 1
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([0.5, 0.25, 1.0, -1.0, 2.0, 4.0])
    rewards[0, 4] = 1.0
    totals, group_ids = outcomes(replace(batch, rewards=rewards))
    assert totals.tolist() == [1.75, 1.0, -1.0, 2.0, 4.0] and group_ids.tolist() == [0, 0, 0, 1, 1]


def test_outcomes_follow_the_trajectory_ids_wherever_the_rows_stand():
    batch = example_batch((2, 2))
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    moved = replace(batch, rewards=rewards, traj_ids=torch.tensor([8, 2, 8, 5]), group_ids=torch.tensor([6, 1, 6, 1]))
    totals, group_ids = outcomes(moved)
    assert totals.tolist() == [2.0, 4.0, 4.0] and group_ids.tolist() == [1, 1, 6]


def test_totals_that_were_added_up_differently_are_equal():
    batch = example_batch((2,))
    rewards = torch.zeros_like(batch.rewards)
    rewards[0, 2:5] = 0.1
    rewards[1, 4] = 0.3
    totals, _ = outcomes(replace(batch, rewards=rewards))
    assert totals[0] == totals[1]


def test_every_trained_token_gets_its_trajectorys_advantage_and_no_other_token_any():
    batch = example_batch()
    filled = outcome(lambda totals, group_ids: torch.arange(1.0, len(totals) + 1))(batch, lambda x: x)
    expected = torch.where(batch.loss_mask, batch.traj_ids[:, None] + 1.0, 0.0)
    assert filled.advantages is not None and filled.advantages.tolist() == expected.tolist()


def test_leave_one_out_as_worked_by_hand():
    totals, group_ids = torch.tensor([1.0, 4.0, 2.0, 7.0, 8.0]), torch.tensor([5, 0, 5, 5, 0])
    # 1 - (2 + 7) / 2, 4 - 8, 2 - (1 + 7) / 2, 7 - (1 + 2) / 2, 8 - 4
    assert leave_one_out(totals, group_ids).tolist() == [-3.5, -4.0, -2.0, 5.5, 4.0]


def test_leave_one_out_agrees_with_leaving_each_one_out():
    g = torch.Generator().manual_seed(1)
    totals, group_ids = torch.randn(30, generator=g), torch.randint(0, 8, (30,), generator=g)
    for i, advantage in enumerate(leave_one_out(totals, group_ids).tolist()):
        others = [float(totals[j]) for j in range(30) if j != i and group_ids[j] == group_ids[i]]
        assert advantage == pytest.approx(float(totals[i]) - statistics.fmean(others) if others else 0.0, abs=1e-6)


def test_each_part_is_normalised_on_its_own_as_worked_by_hand():
    # (1, 0) and (0, 1) earn the same total, but the second part is rarer, and its success worth more.
    parts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    group_ids = torch.tensor([1, 1, 1, 1, 0])
    # First part: mean 1/2, std 1/2: 1, -1, 1, -1. Second: mean 1/4, std sqrt(3)/4: -1/sqrt(3), sqrt(3), ...
    low, high = -1 / math.sqrt(3), math.sqrt(3)
    expected = [2 + low, -2 + high, 2 + low, -2 + low, 0.0]
    assert parts_normalized(parts, (2.0, 1.0), group_ids).tolist() == pytest.approx(expected, abs=1e-4)
    together = group_normalized(parts.sum(-1), group_ids)  # the control: one normalisation cannot tell them apart
    assert together[0] == together[1]


def test_a_parts_scale_does_not_change_its_weight_and_a_constant_part_has_none():
    g = torch.Generator().manual_seed(2)
    parts, group_ids = torch.randn(12, 3, generator=g), torch.arange(12) % 3
    parts[:, 2] = 0.1
    weights = (1.0, 0.5, 7.0)
    plain = parts_normalized(parts, weights, group_ids)
    torch.testing.assert_close(parts_normalized(parts * torch.tensor([100.0, 1.0, 1.0]), weights, group_ids), plain, rtol=0, atol=1e-4)
    assert torch.equal(parts_normalized(parts[:, :2], weights[:2], group_ids), plain)
    assert not torch.equal(parts_normalized(parts, (2.0, 0.5, 7.0), group_ids), plain)


def test_two_levels_as_worked_by_hand():
    totals = torch.tensor([1.0, 0.5, 0.0, 0.5, 0.0, 0.0, 7.0])
    mode_ids = torch.tensor([8, 8, 8, 2, 2, 2, 2])
    group_ids = torch.tensor([0, 0, 0, 0, 0, 0, 1])
    intra, inter = two_level(totals, group_ids, mode_ids)
    # Within each mode one of three is the best: mean 1/3, std sqrt(2)/3. Mode 8's mean is 1/2, mode 2's 1/6.
    best, rest = math.sqrt(2), -1 / math.sqrt(2)
    assert intra.tolist() == pytest.approx([best, rest, rest, best, rest, rest, 0], abs=1e-4)
    assert inter.tolist() == pytest.approx([1, 1, 1, -1, -1, -1, 0], abs=1e-4)


def test_a_mode_that_leads_by_no_more_than_the_margin_earns_nothing():
    totals, mode_ids = torch.tensor([1.0, 0.5, 0.5, 0.5, 0.0, 0.0]), torch.tensor([3, 3, 4, 4, 5, 5])
    group_ids = torch.zeros(6, dtype=torch.int64)
    assert not two_level(totals, group_ids, mode_ids, margin=0.25)[1].any()  # means 0.75, 0.5, 0
    assert (two_level(totals, group_ids, mode_ids, margin=0.2)[1] > 0).tolist() == [True, True, False, False, False, False]
    tied = torch.tensor([0.1, 0.3, 0.3, 0.1, 0.0, 0.0])
    assert not two_level(tied, group_ids, mode_ids)[1].any()


def test_two_levels_agree_with_loops_over_groups_and_modes():
    g = torch.Generator().manual_seed(4)
    totals, group_ids, mode_ids = (torch.randint(0, n, (60,), generator=g) for n in (5, 6, 3))
    intra, inter = two_level(totals.float(), group_ids, mode_ids)
    turned = two_level(totals.flip(0).float(), group_ids.flip(0), mode_ids.flip(0))
    assert torch.equal(turned[0].flip(0), intra) and torch.equal(turned[1].flip(0), inter)

    def normalized(rewards, i):
        return (rewards[i] - statistics.fmean(rewards.values())) / (statistics.pstdev(rewards.values()) + 1e-6)

    for i in range(60):
        group = [j for j in range(60) if group_ids[j] == group_ids[i]]
        modes = {int(m): [int(totals[j]) for j in group if mode_ids[j] == m] for m in mode_ids[group]}
        own = {j: float(int(totals[j]) == max(modes[int(mode_ids[i])])) for j in group if mode_ids[j] == mode_ids[i]}
        means = {m: statistics.fmean(earned) for m, earned in modes.items()}
        ahead = [m for m in means if all(means[m] > means[n] + 1e-6 for n in means if n != m)]
        assert float(intra[i]) == pytest.approx(normalized(own, i), abs=1e-5)
        assert float(inter[i]) == pytest.approx(normalized({j: float(int(mode_ids[j]) in ahead) for j in group}, i), abs=1e-5)


def test_whitening_as_worked_by_hand():
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, torch.nan, 3.0]])
    mask = torch.tensor([[True, True, False], [True, False, True]])
    # 1, 3, 5, 3: mean 3, std sqrt(2); about 0 the std is sqrt((1 + 9 + 25 + 9) / 4) = sqrt(11).
    out, kept = whiten(x, mask, lambda x: x), whiten(x, mask, lambda x: x, center=False)
    torch.testing.assert_close(out, torch.tensor([[-(2**0.5), 0, 0], [2**0.5, 0, 0]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(kept, torch.tensor([[1.0, 3, 0], [5, 0, 3]]) / 11**0.5, rtol=0, atol=1e-5)


@pytest.mark.parametrize("value", [0.1, 1 / 3, -0.7, 1e6 + 0.1, 0.0])
@pytest.mark.parametrize("number", [1, 3, 7, 49])
def test_equal_values_are_whitened_to_exactly_zero(value, number):
    shares = [torch.full((1, number), value), torch.full((2, number), value)]
    for out in on_ranks(lambda x, reduce: whiten(x, torch.ones_like(x, dtype=torch.bool), reduce), shares):
        assert not out.any()


def test_a_large_offset_costs_whitening_no_precision():
    x, mask = torch.arange(64.0).view(4, 16), torch.ones(4, 16, dtype=torch.bool)
    plain = whiten(x, mask, lambda x: x)
    torch.testing.assert_close(whiten(x + 2.0**23, mask, lambda x: x), plain, rtol=0, atol=1e-6)
    assert (x + 2.0**23).square().mean() - (x + 2.0**23).mean().square() != x.var(correction=0)  # the control: one pass in float32


def test_whitening_is_over_all_ranks_and_each_calls_reduce_equally_often():
    g = torch.Generator().manual_seed(6)
    x, mask = torch.randn(6, 5, generator=g), torch.rand(6, 5, generator=g) < 0.6
    mask[4:] = False  # a rank without a trained token
    for center in (True, False):
        whole = whiten(x, mask, lambda x: x, center)
        shares = [(x[rows], mask[rows]) for rows in (slice(1), slice(1, 4), slice(4, 6))]
        parts = on_ranks(lambda share, reduce, center=center: whiten(*share, reduce, center), shares)
        torch.testing.assert_close(torch.cat(parts), whole)
        assert not torch.allclose(whiten(x[:1], mask[:1], lambda x: x, center), whole[:1])  # the control: a rank by itself
    assert not whiten(x, torch.zeros_like(mask), lambda x: x).any()


def test_a_greedy_answer_is_the_baseline_of_all_rows_of_a_trajectory():
    batch = example_batch((3, 2))  # trajectory 0 has rows 0 and 1
    rewards = torch.zeros_like(batch.rewards)
    rewards[:, 3] = torch.tensor([0.5, 0.25, 1.0, -1.0, 2.0, 4.0])
    given = replace(batch, rewards=rewards, baselines=torch.tensor([0.25, 0.25, 0.25, 0.25, 2.0, 2.0]))
    expected = torch.tensor([0.5, 0.5, 0.75, -1.25, 0.0, 2.0])[:, None].expand_as(rewards)
    filled = greedy_baseline(given, lambda x: x)
    assert filled.advantages is not None and filled.advantages.tolist() == torch.where(batch.loss_mask, expected, 0.0).tolist()


def test_what_rows_of_a_trajectory_repeat_is_read_once_in_order_of_trajectories():
    batch = replace(example_batch((2, 2)), traj_ids=torch.tensor([8, 2, 8, 5]))
    assert of_trajectories(batch, torch.tensor([[1.0, 2], [3, 4], [1, 2], [5, 6]])).tolist() == [[3, 4], [5, 6], [1, 2]]
    with pytest.raises(ValueError, match="not filled"):
        of_trajectories(batch, batch.parts)
