"""GRPO and its options: a naive oracle of the whole step, the laws, and errors that help."""

import math
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rlft.algorithms import BUILTIN
from rlft.algorithms.base import Algorithm
from rlft.algorithms.grpo import dapo, dr_grpo, grpo
from rlft.algorithms.masking import loss_weights, weighted_sum
from rlft.errors import ConfigError
from rlft.names import bind
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import Batch

OPTIONS = [
    {},
    {"normalize": False, "aggregation": "sequence"},
    {"clip_low": 0.1, "clip_high": 0.4, "aggregation": "constant", "max_length": 7},
    {"dual_clip": 1.2, "clip_low": 0.3},
    {"kl_coef": 0.2, "kl": "k2", "aggregation": "sequence"},
    {"kl_coef": 0.2, "kl": "k1", "kl_in": "reward", "normalize": False},
    {"overlong": "filter", "aggregation": "sequence", "is_cap": 1.1, "kl_coef": 0.1},
]


def identity(x):
    return x


def some_logprobs(batch: Batch) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.where(batch.loss_mask, batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=g), 0.0)


def step(algorithm: Algorithm, given: Batch, logprobs: torch.Tensor) -> torch.Tensor:
    batch = algorithm.advantages(given, identity)
    weights = loss_weights(batch.loss_mask, batch.traj_ids, algorithm.aggregation, identity, algorithm.max_length)
    return weighted_sum(algorithm.loss(logprobs, batch)[0], weights)


def oracle(
    batch, logprobs, clip_low=0.2, clip_high=0.2, normalize=True, aggregation="token", kl_coef=0.0, kl="k3", kl_in="loss", overlong="keep",
    max_length=None, is_cap=None, dual_clip=None,
):  # fmt: skip
    """The same step again, one token at a time, with nothing but floats."""
    B, T = batch.token_ids.shape

    def estimate(p, q):
        return {"k1": p - q, "k2": (p - q) ** 2 / 2, "k3": math.exp(q - p) - 1 - (q - p)}[kl]

    total, group = {}, {}
    for i in range(B):
        m = int(batch.traj_ids[i])
        group[m] = int(batch.group_ids[i])
        for t in range(T):
            total[m] = total.get(m, 0.0) + float(batch.rewards[i, t])
            if kl_in == "reward" and batch.loss_mask[i, t]:
                total[m] -= kl_coef * estimate(float(batch.old_logprobs[i, t]), float(batch.ref_logprobs[i, t]))
    advantage = {}
    for m in total:
        members = [total[n] for n in total if group[n] == group[m]]
        advantage[m] = total[m] - statistics.fmean(members)
        if normalize:
            advantage[m] /= statistics.pstdev(members) + 1e-6

    tokens = [(i, t) for i in range(B) for t in range(T) if batch.loss_mask[i, t] and not (overlong == "filter" and batch.truncated[i])]
    length = {}
    for i, _ in tokens:
        length[int(batch.traj_ids[i])] = length.get(int(batch.traj_ids[i]), 0) + 1
    out = 0.0
    for i, t in tokens:
        m = int(batch.traj_ids[i])
        new, old, ref, engine = (
            float(x[i, t]) for x in (logprobs, batch.old_logprobs, batch.ref_logprobs, batch.rollout_logprobs)
        )
        ratio = math.exp(new - old)
        loss = -min(ratio * advantage[m], min(max(ratio, 1 - clip_low), 1 + clip_high) * advantage[m])
        if dual_clip is not None and advantage[m] < 0:
            loss = min(loss, -dual_clip * advantage[m])
        if is_cap is not None:
            loss *= min(math.exp(old - engine), is_cap)
        if kl_in == "loss":
            loss += kl_coef * estimate(new, ref)
        share = {"token": len(tokens), "sequence": length[m] * len(length), "constant": (max_length or 0) * len(length)}[aggregation]
        out += loss / share
    return out


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_agrees_with_a_naive_oracle(options):
    batch = example_batch((4, 3, 1, 5), tokens=14, seed=2)
    logprobs = some_logprobs(batch)
    assert float(step(grpo(**options), batch, logprobs)) == pytest.approx(oracle(batch, logprobs, **options), abs=2e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_combination_keeps_the_laws(options):
    check_algorithm(grpo(**options))


@pytest.mark.parametrize("options", [{}, {"kl_coef": 0.1}, {"overlong": "filter", "is_cap": 2.0}], ids=str)
def test_dr_grpo_keeps_the_laws_and_is_a_composition(options):
    algorithm = dr_grpo(max_length=9, **options)
    check_algorithm(algorithm)
    assert (algorithm.name, algorithm.aggregation, algorithm.max_length) == ("dr_grpo", "constant", 9)
    batch = example_batch()
    plain = grpo(normalize=False, aggregation="constant", max_length=9, **options)
    assert step(algorithm, batch, some_logprobs(batch)) == step(plain, batch, some_logprobs(batch))


def test_dapo_is_grpo_with_a_higher_clip_that_leaves_truncated_answers_out():
    check_algorithm(dapo())
    batch, named = example_batch(), {"clip_high": 0.28, "overlong": "filter"}
    assert step(dapo(), batch, some_logprobs(batch)) == step(grpo(**named), batch, some_logprobs(batch))
    assert step(dapo(), batch, some_logprobs(batch)) != step(grpo(), batch, some_logprobs(batch))


def test_a_dual_clip_bounds_what_a_bad_token_costs():
    check_algorithm(grpo(dual_clip=1.2))
    batch = example_batch()
    assert step(grpo(dual_clip=1.2), batch, some_logprobs(batch)) < step(grpo(), batch, some_logprobs(batch))


def test_on_policy_the_gradient_is_reinforces():
    batch = grpo().advantages(example_batch(), identity)
    logprobs = batch.old_logprobs.clone().requires_grad_()
    grpo().loss(logprobs, batch)[0].sum().backward()
    assert torch.equal(logprobs.grad, -batch.advantages) and batch.advantages.any()


def test_on_policy_the_metrics_say_ratio_one_and_no_kl_to_the_old_policy():
    batch = grpo().advantages(example_batch(), identity)
    _, metrics = grpo().loss(batch.old_logprobs, batch)
    assert set(metrics) == {"ratio/mean", "ratio/bounded", "ratio/clipped", "kl/old"}
    assert (metrics["ratio/mean"] == 1).all() and not metrics["ratio/clipped"].any() and not metrics["kl/old"].any()


def test_metrics_off_policy_are_ratio_share_clipped_and_both_kls():
    algorithm = grpo(kl_coef=0.1)
    batch = algorithm.advantages(example_batch(), identity)
    new = batch.old_logprobs + math.log(1.5)
    _, metrics = algorithm.loss(new, batch)
    on, gap = batch.loss_mask, batch.ref_logprobs - new
    torch.testing.assert_close(metrics["ratio/mean"][on], torch.full_like(new[on], 1.5))
    torch.testing.assert_close(metrics["kl/old"][on], torch.full_like(new[on], 0.5 - math.log(1.5)))
    torch.testing.assert_close(metrics["kl/ref"][on], (gap.exp() - 1 - gap)[on])
    assert metrics["ratio/clipped"][on].bool().tolist() == (batch.advantages[on] > 0).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_low": 1.5}, "algorithm.clip_low: expected 0 to 1, got 1.5"),
        ({"clip_high": -0.1}, "algorithm.clip_high: expected at least 0, got -0.1"),
        ({"dual_clip": 1.0}, "algorithm.dual_clip: expected more than 1, got 1.0"),
    ],
)
def test_an_option_that_is_wrong_or_does_not_apply_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        grpo(**options)
    assert str(error.value).startswith(message)


def test_dr_grpo_without_a_length_says_what_to_set():
    with pytest.raises(ConfigError, match="set it to rollout.max_tokens"):
        dr_grpo()


def test_short_names_resolve_with_their_options_checked():
    for name in BUILTIN:
        options = {"dr_grpo": {"max_length": 8}, "score": {"stage": 2}, "gdpo": {"weights": {"right": 1.0}}}.get(name, {})
        assert bind({"name": name, **options}, BUILTIN, "algorithm")().name == name
    with pytest.raises(ConfigError, match="did you mean 'clip_high'"):
        bind({"name": "grpo", "clip_hgh": 0.3}, BUILTIN, "algorithm")


def test_the_table_of_names_loads_no_torch():
    code = "import sys, rlft.algorithms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("options", [{}, {"normalize": False}, {"kl_coef": 0.02, "kl": "k1", "kl_in": "reward"}, {"is_cap": 2.0}], ids=str)
def test_a_categorical_policy_learns_the_rewarded_token(options):
    """Four tokens, one of them right; two epochs a step, so the clip takes part."""
    algorithm, g = grpo(**options), torch.Generator().manual_seed(0)
    logits, reference = torch.zeros(4), torch.zeros(4).log_softmax(-1)
    template = example_batch((16,), tokens=3)
    mask = torch.zeros_like(template.loss_mask)
    mask[:, 2] = True
    for _ in range(20):
        sampled = logits.softmax(-1).multinomial(len(mask), replacement=True, generator=g)
        old = torch.where(mask, logits.log_softmax(-1)[sampled][:, None], 0.0)
        rewards = torch.where(mask & (sampled == 3)[:, None], 1.0, 0.0)
        given = replace(
            template, traj_ids=torch.arange(len(mask)), loss_mask=mask, rewards=rewards, old_logprobs=old, rollout_logprobs=old,
            ref_logprobs=torch.where(mask, reference[sampled][:, None], 0.0),
        )  # fmt: skip
        for _ in range(2):
            variable = logits.clone().requires_grad_()
            loss = step(algorithm, given, torch.where(mask, variable.log_softmax(-1)[sampled][:, None], 0.0))
            logits = logits - 1.0 * torch.autograd.grad(loss, variable)[0]
    assert float(logits.softmax(-1)[3]) > 0.9
