"""HGPO: a table, an oracle, and the laws."""

import math
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.advantages import two_level
from rlft.algorithms.hgpo import first_tokens, hgpo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch

THINK, ANSWER = 41, 42


def in_modes(modes, rewards):
    """One row a trajectory of one group, whose first trained token is its mode's."""
    batch = example_batch((2, 1) if len(modes) == 3 else (2, 2))
    token_ids = batch.token_ids.clone()
    for b, mode in enumerate(modes):
        token_ids[b, int(batch.loss_mask[b].int().argmax())] = mode
    earned = torch.zeros_like(batch.rewards)
    earned[:, -1] = torch.tensor(rewards)
    return replace(batch, token_ids=token_ids, rewards=earned, group_ids=torch.zeros_like(batch.group_ids))


@pytest.mark.parametrize("options", [{}, {"mode_coef": 0.5, "margin": 0.1}, {"kl_coef": 0.1}, {"overlong": "filter"}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(hgpo(**options))


def test_advantages_as_worked_by_hand():
    batch = in_modes([THINK, THINK, ANSWER, ANSWER], [1.0, 0.0, 0.25, 0.25])
    got = hgpo(mode_coef=0.5).advantages(batch, lambda x: x).advantages
    # Thinking is better: its answers earn 1 between the modes, the others 0: normalised 1, 1, -1, -1.
    # Within thinking 1 and -1; the others are alike: 0.
    intra, inter = torch.tensor([1.0, -1, 0, 0])[:, None], torch.tensor([1.0, 1, -1, -1])[:, None]
    first = batch.loss_mask & (batch.loss_mask.cumsum(-1) == 1)
    expected = torch.where(batch.loss_mask, intra + 0.5 * torch.where(first, inter, 0.0), 0.0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_the_mode_token_is_the_first_that_was_sampled_over_all_rows_of_a_trajectory():
    batch = example_batch((3, 1))  # trajectory 0 has rows 0 and 1, a turn each
    for order in ([0, 1, 2, 3, 4], [1, 0, 4, 3, 2]):
        turned = batch.rows(order)
        first, mode_ids = first_tokens(turned)
        for m in range(4):
            row = [0, 2, 3, 4][m]
            t = min(t for t in range(12) if batch.loss_mask[row, t])
            assert int(mode_ids[m]) == int(batch.token_ids[row, t])
            assert (first & (turned.traj_ids == m)[:, None]).nonzero().tolist() == [[order.index(row), t]]


def test_a_trajectory_without_a_sampled_token_has_no_mode_and_one_out_of_the_loss_has_its_own():
    batch, one = example_batch((2,)), torch.tensor([[False], [True]])
    first, mode_ids = first_tokens(replace(batch, turn_ids=torch.where(one, batch.turn_ids, -1)))
    assert not first[0].any() and first[1].sum() == 1 and int(mode_ids[0]) == -1
    unmasked = first_tokens(replace(batch, loss_mask=batch.loss_mask & one))
    assert torch.equal(unmasked[1], first_tokens(batch)[1]) and torch.equal(unmasked[0], first_tokens(batch)[0])


def test_a_filtered_answer_counts_for_its_mode():
    batch = replace(in_modes([THINK, THINK, ANSWER], [0.0, 1.0, 0.75]), truncated=torch.tensor([False, True, False]))
    kept, filtered = (hgpo(overlong=how).advantages(batch, lambda x: x).advantages for how in ("keep", "filter"))
    assert kept[0].any() and torch.equal(filtered[[0, 2]], kept[[0, 2]]) and kept[1].any() and not filtered[1].any()


def test_a_step_agrees_with_two_levels_and_a_loop():
    batch = example_batch((4, 3, 1, 5), seed=7)
    batch = replace(batch, token_ids=batch.token_ids % 2 + THINK)
    algorithm = hgpo(mode_coef=2.0, clip_high=0.4)
    new = batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    got, _ = algorithm.loss(new, algorithm.advantages(batch, lambda x: x))
    order = sorted((int(batch.traj_ids[b]), int(batch.turn_ids[b, t]), t, b) for b, t in batch.loss_mask.nonzero().tolist())
    firsts = {m: (b, t) for m, _, t, b in reversed(order)}
    totals = torch.tensor([sum(float(batch.rewards[b].sum()) for b in range(15) if batch.traj_ids[b] == m) for m in firsts][::-1])
    modes = torch.tensor([int(batch.token_ids[firsts[m]]) for m in range(13)])
    groups = torch.tensor([int(batch.group_ids[firsts[m][0]]) for m in range(13)])
    intra, inter = two_level(totals, groups, modes)
    for m, _, t, b in order:
        advantage = float(intra[m]) + 2.0 * float(inter[m]) * ((b, t) == firsts[m])
        ratio = math.exp(float(new[b, t] - batch.old_logprobs[b, t]))
        assert float(got[b, t]) == pytest.approx(-min(ratio * advantage, min(max(ratio, 0.8), 1.4) * advantage), abs=1e-4)
    assert inter.any()


def test_a_mode_within_the_margin_earns_nothing_on_its_token():
    batch = in_modes([THINK, THINK, ANSWER, ANSWER], [0.5, 0.5, 0.25, 0.25])
    assert not hgpo(margin=0.25).advantages(batch, lambda x: x).advantages.any()
    assert hgpo(margin=0.2).advantages(batch, lambda x: x).advantages.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode_coef": 0.0}, "algorithm.mode_coef: expected more than 0, got 0.0"),
        ({"margin": -0.1}, "algorithm.margin: expected at least 0, got -0.1"),
    ],
)
def test_an_option_that_is_wrong_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        hgpo(**options)
    assert str(error.value) == message
