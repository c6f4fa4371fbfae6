"""Clip-Cov and KL-Cov as methods: which tokens they spare, and what those then cost."""

import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.clip_cov import clip_cov, kl_cov
from rlft.algorithms.grpo import grpo
from rlft.errors import ConfigError
from rlft.testing.checks import check_algorithm, example_batch


def identity(x):
    return x


def covariances(batch, advantages, tokens):
    """By the definition, one token at a time."""
    logprob = statistics.fmean(float(batch.old_logprobs[at]) for at in tokens)
    advantage = statistics.fmean(float(advantages[at]) for at in tokens)
    return {at: (float(batch.old_logprobs[at]) - logprob) * (float(advantages[at]) - advantage) for at in tokens}


def trained(batch):
    return [(int(i), int(t)) for i, t in batch.loss_mask.nonzero()]


@pytest.mark.parametrize("options", [{}, {"overlong": "filter"}, {"normalize": False, "kl_coef": 0.1, "is_cap": 2.0}], ids=str)
def test_clip_cov_keeps_the_laws(options):
    check_algorithm(clip_cov(0.3, 0.01, 9.0, **options))


@pytest.mark.parametrize("options", [{}, {"overlong": "filter"}, {"normalize": False, "entropy_coef": 0.1, "is_cap": 2.0}], ids=str)
def test_kl_cov_keeps_the_laws(options):
    check_algorithm(kl_cov(0.2, **options))


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_grpos_scaled_or_not_where_no_token_is_in_the_band(normalize):
    given = example_batch()
    same, other = (grpo(normalize=n).advantages(given, identity).advantages for n in (normalize, not normalize))
    for algorithm in (clip_cov(1.0, 1e6, 2e6, normalize=normalize), kl_cov(normalize=normalize)):
        mine = algorithm.advantages(given, identity).advantages
        assert torch.equal(mine, same) and not torch.equal(mine, other)


def test_clip_cov_takes_the_band_out_of_the_gradient_and_leaves_the_rest_as_it_is():
    given = example_batch((4, 3), tokens=40)
    plain, spared = grpo().advantages(given, identity), clip_cov(1.0, 0.1, 0.5).advantages(given, identity)
    found = covariances(given, plain.advantages, trained(given))
    band = {at for at, x in found.items() if 0.1 <= x <= 0.5}
    assert 5 < len(band) < len(found) / 2
    for at in found:
        assert float(spared.advantages[at]) == (0.0 if at in band else float(plain.advantages[at]))
    assert torch.equal(spared.loss_mask, plain.loss_mask)  # they stay in the denominators


def test_clip_cov_spares_about_the_fraction_of_all_tokens():
    given = example_batch((8,) * 20, tokens=60)
    plain, spared = grpo().advantages(given, identity), clip_cov(0.02, 0.2, 9.0).advantages(given, identity)
    gone = int(((plain.advantages != 0) & (spared.advantages == 0)).sum())
    wanted = 0.02 * int(given.loss_mask.sum())
    assert abs(gone - wanted) < 4 * wanted**0.5 and gone > 0
    again = clip_cov(0.02, 0.2, 9.0).advantages(replace(given, policy_versions=given.policy_versions + 1), identity)
    assert not torch.equal(again.advantages, spared.advantages)  # another step spares others


def test_kl_cov_makes_the_highest_covariances_pay():
    given = example_batch((4, 3), tokens=40)
    algorithm = kl_cov(0.1, coef=0.5)
    batch = algorithm.advantages(given, identity)
    found = covariances(given, batch.advantages, trained(given))
    wanted = sorted(found, key=lambda at: -found[at])[: int(0.1 * len(found))]
    assert {at for at in found if batch.kl_coef[at] == 0.5} == set(wanted) and float(batch.kl_coef.sum()) == 0.5 * len(wanted)

    logprobs = torch.where(given.loss_mask, given.old_logprobs - 0.2, 0.0)
    loss, metrics = algorithm.loss(logprobs, batch)
    ratio = torch.tensor(-0.2).exp()
    for at in found:
        want = -float(ratio) * float(batch.advantages[at]) + (0.5 * 0.2 if at in wanted else 0.0)
        assert float(loss[at]) == pytest.approx(want, abs=1e-6)
        assert bool(metrics["kl/held_back"][at]) is (at in wanted)


def test_at_the_steps_start_kl_covs_gradient_is_reinforces():
    batch = kl_cov(0.2).advantages(example_batch(), identity)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    kl_cov(0.2).loss(logprobs, batch)[0].sum().backward()
    torch.testing.assert_close(logprobs.grad, -batch.advantages)


@pytest.mark.parametrize("make", [lambda **o: clip_cov(0.3, 0.05, 9.0, **o), lambda **o: kl_cov(0.5, **o)], ids=["clip_cov", "kl_cov"])
def test_filtered_trajectories_do_not_count_among_the_tokens(make):
    given = example_batch((4, 3), tokens=40)  # trajectory 3 is truncated
    filtered = make(overlong="filter").advantages(given, identity)
    alone = replace(given, loss_mask=given.loss_mask & ~given.truncated[:, None])
    want = make().advantages(alone, identity)
    plain, kept = make().advantages(given, identity), alone.loss_mask
    streams = [x.advantages if x.kl_coef is None else x.kl_coef for x in (filtered, want, plain)]
    assert torch.equal(streams[0][kept], streams[1][kept])
    assert not torch.equal(streams[0][kept], streams[2][kept])  # the control: with all tokens the choice is another


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clip_cov(fraction=0), "algorithm.fraction: expected more than 0, at most 1, got 0"),
        (lambda: clip_cov(low=5, high=1), "algorithm.low: expected less than high = 1, got 5"),
        (lambda: clip_cov(clip_low=2), "algorithm.clip_low: expected 0 to 1, got 2"),
        (lambda: kl_cov(fraction=1.5), "algorithm.fraction: expected more than 0, at most 1, got 1.5"),
        (lambda: kl_cov(coef=0), "algorithm.coef: expected more than 0, got 0"),
        (lambda: kl_cov(kl_coef=0.1), "algorithm.kl_coef: expected 0: kl_cov has a KL of its own, `coef`, got 0.1"),
    ],
)
def test_wrong_options_are_errors(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
