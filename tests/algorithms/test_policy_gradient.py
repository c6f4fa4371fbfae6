"""What all policy-gradient methods share: every option by value against a naive oracle, the laws, and errors that help."""

import math
from dataclasses import fields, replace

import pytest
import torch

from rlft.algorithms import BUILTIN
from rlft.algorithms.advantages import group_centered, outcome
from rlft.algorithms.base import Algorithm
from rlft.algorithms.gdpo import gdpo
from rlft.algorithms.grpo import grpo
from rlft.algorithms.masking import masked
from rlft.algorithms.policy_gradient import DEFAULTS, STREAMS, policy_gradient, without_noise
from rlft.algorithms.ppo import ppo
from rlft.algorithms.reflect import reflect_retry_reward
from rlft.algorithms.reinforce_pp import reinforce_pp
from rlft.errors import ConfigError
from rlft.names import import_object
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import PER_ROW, Batch

OPTIONS = [
    {},
    *({"kl_coef": 0.3, "kl": form} for form in ("k1", "k2", "k3", "k1+", "k3+", "k3_ratio")),
    *({"kl_coef": 0.3, "kl": form, "kl_in": "reward"} for form in ("k1", "k2", "k3")),
    {"kl_coef": 0.3, "kl_turns": [10.0, 0.5]},
    {"kl_coef": 0.3, "kl_turns": [0.0, 2.0], "kl_in": "reward", "kl": "k1"},
    {"kl_coef": 0.3, "kl_turns": [4.0], "kl": "k2"},
    {"entropy_coef": 0.2},
    {"entropy_coef": -0.2, "kl_coef": 0.1},
    *({"is_cap": cap, "is_level": level} for level, cap in (("token", 1.2), ("sequence", 1.5), ("geometric", 1.05))),
    *(
        {"is_cap": cap, "is_level": level, "is_mode": "mask", "is_floor": floor}
        for level, floor, cap in (("token", 0.6, 1.4), ("sequence", 0.1, 3.0), ("geometric", 0.8, 1.1))
    ),
    {"is_cap": 1.2, "is_mode": "mask", "kl_coef": 0.2},
    {"overlong": "filter"},
    {"overlong": "filter", "kl_coef": 0.3, "kl_in": "reward", "is_cap": 1.5, "is_level": "sequence", "entropy_coef": 0.1},
    {"aggregation": "sequence", "overlong": "filter"},
    {"aggregation": "constant", "max_length": 7},
]


def identity(x):
    return x


def plain(**shared) -> Algorithm:
    """REINFORCE with a group's mean as the baseline: what the shared options stand around."""

    def surrogate(logprobs, batch):
        return -batch.advantages * logprobs, {"plain/advantage": batch.advantages}

    return policy_gradient("plain", outcome(group_centered), surrogate, shared)


def given_batch(**changes) -> Batch:
    return replace(example_batch((4, 3, 1, 5), tokens=14, seed=2), **changes)


def some_logprobs(batch: Batch) -> torch.Tensor:
    g = torch.Generator().manual_seed(5)
    return torch.where(batch.loss_mask, batch.old_logprobs + 0.3 * torch.randn(batch.token_ids.shape, generator=g), 0.0)


def run(algorithm: Algorithm, batch: Batch):
    """Per-token loss, its gradients over log-probabilities and entropies, what was filled, and metrics."""
    entropy, logprobs = batch.entropy.clone().requires_grad_(), some_logprobs(batch).requires_grad_()
    filled = algorithm.advantages(batch, identity)
    loss, metrics = algorithm.loss(logprobs, replace(filled, entropy=entropy))
    gradients = torch.autograd.grad(loss.sum(), [logprobs, entropy], allow_unused=True, materialize_grads=True)
    return loss.detach(), *gradients, filled, metrics


def form(kl, new, ref, old):
    """A form of the KL at one token and its derivative over the new log-probability, by hand."""
    k3 = math.exp(ref - new) - 1 - (ref - new)
    return {
        "k1": (new - ref, 1.0),
        "k2": ((new - ref) ** 2 / 2, new - ref),
        "k3": (k3, 1 - math.exp(ref - new)),
        "k1+": (new - ref, new - ref),
        "k3+": (k3, new - ref),
        "k3_ratio": (math.exp(new - old) * k3, math.exp(new - old) * (k3 + 1 - math.exp(ref - new))),
    }[kl]


def oracle(
    batch, kl_coef=0.0, kl="k3", kl_in="loss", kl_turns=(), entropy_coef=0.0, is_cap=None, is_level="token", is_mode="truncate",
    is_floor=0.0, overlong="keep", aggregation="token", max_length=None,
):  # fmt: skip
    """(loss, d loss / d logprob, d loss / d entropy, advantage) of every trained token, with nothing but floats."""
    B, T = batch.token_ids.shape
    mask, turns, trajectory, truncated = (x.tolist() for x in (batch.loss_mask, batch.turn_ids, batch.traj_ids, batch.truncated))
    streams = [x.tolist() for x in (some_logprobs(batch), batch.old_logprobs, batch.ref_logprobs, batch.rollout_logprobs)]
    sampled = [(b, t) for b in range(B) for t in range(T) if mask[b][t]]

    def weight(b, t):
        factor = kl_turns[min(turns[b][t], len(kl_turns) - 1)] if kl_turns else 1.0
        return (kl_coef if batch.kl_coef is None else float(batch.kl_coef[b, t])) * factor

    total, gaps = dict.fromkeys(trajectory, 0.0), {m: [] for m in trajectory}
    for b in range(B):
        total[trajectory[b]] += sum(batch.rewards[b].tolist())
    for b, t in sampled:
        _, old, ref, engine = (x[b][t] for x in streams)
        gaps[trajectory[b]].append(old - engine)
        if kl_coef and kl_in == "reward":
            total[trajectory[b]] -= weight(b, t) * form(kl, old, ref, old)[0]
    group = dict(zip(trajectory, batch.group_ids.tolist(), strict=True))
    out = {}
    for b, t in sampled:
        if overlong == "filter" and truncated[b]:
            continue
        m = trajectory[b]
        others = [total[n] for n in total if group[n] == group[m]]
        advantage = total[m] - sum(others) / len(others)
        logprob, old, ref, engine = (x[b][t] for x in streams)
        ratio = 1.0
        if is_cap is not None:
            ratio = math.exp({"token": old - engine, "sequence": sum(gaps[m]), "geometric": sum(gaps[m]) / len(gaps[m])}[is_level])
            ratio = min(ratio, is_cap) if is_mode == "truncate" else ratio if is_floor <= ratio <= is_cap else 0.0
        loss, slope = -ratio * advantage * logprob, -ratio * advantage
        if kl_coef and kl_in == "loss":
            value, derivative = form(kl, logprob, ref, old)
            loss, slope = loss + weight(b, t) * value, slope + weight(b, t) * derivative
        out[b, t] = loss - entropy_coef * float(batch.entropy[b, t]), slope, -entropy_coef, advantage
    return out


def dense(batch: Batch, table, column: int) -> torch.Tensor:
    out = torch.zeros(batch.token_ids.shape)
    for at, numbers in table.items():
        out[at] = numbers[column]
    return out


def agree(batch: Batch, options: dict) -> None:
    loss, slope, bonus, filled, _ = run(plain(**options), batch)
    table = oracle(batch, **options)
    assert filled.loss_mask.nonzero().tolist() == [list(at) for at in table]
    for column, got in enumerate((loss, slope, bonus, filled.advantages)):
        torch.testing.assert_close(got, dense(batch, table, column), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_and_gradients_agree_with_a_naive_oracle(options):
    batch = given_batch()
    agree(batch, options)
    if set(options) - {"aggregation", "max_length"}:  # the control: the options change something
        assert oracle(batch, **options) != oracle(batch)


@pytest.mark.parametrize(
    "options",
    [
        {"kl_coef": 0.3, "kl_turns": [10.0, 0.5]},
        {"kl_coef": 0.3, "kl_turns": [0.0, 2.0], "kl_in": "reward", "kl": "k1"},
        {"is_cap": 1.5, "is_level": "sequence", "entropy_coef": 0.1, "overlong": "filter"},
        {"is_cap": 1.1, "is_level": "geometric", "is_mode": "mask", "is_floor": 0.8, "kl_coef": 0.2, "kl": "k3_ratio"},
        {"aggregation": "constant", "max_length": 7, "overlong": "filter"},
    ],
    ids=str,
)
def test_every_option_keeps_the_laws(options):
    check_algorithm(plain(**options))


def test_aggregation_and_length_are_the_algorithms():
    assert (plain().aggregation, plain().max_length) == ("token", None)
    assert plain(aggregation="sequence").aggregation == "sequence"
    constant = plain(aggregation="constant", max_length=7)
    assert (constant.aggregation, constant.max_length) == ("constant", 7)


# KL


def test_factors_by_turn_are_those_of_the_tokens_turn_and_the_last_holds_on():
    batch = given_batch()
    turns = torch.where(batch.loss_mask, torch.arange(14) % 5, -1)  # turns 0 to 4
    filled = plain(kl_coef=0.5, kl_turns=[10.0, 1.0, 3.0]).advantages(replace(batch, turn_ids=turns), identity)
    table = {-1: 0.0, 0: 5.0, 1: 0.5, 2: 1.5, 3: 1.5, 4: 1.5}
    assert filled.kl_coef.tolist() == [[table[k] for k in row] for row in turns.tolist()]


@pytest.mark.parametrize("options", [{}, {"kl_in": "reward", "kl": "k1"}, {"kl_turns": [2.0, 1.0]}], ids=str)
def test_a_control_takes_the_place_of_the_fixed_coefficient(options):
    batch = given_batch()
    moved = replace(batch, kl_coef=torch.full_like(batch.rewards, 0.7))
    agree(moved, {"kl_coef": 0.3, **options})
    one, other = run(plain(kl_coef=0.3, **options), moved), run(plain(kl_coef=0.7, **options), batch)
    for got, want in zip(one[:3], other[:3], strict=True):
        torch.testing.assert_close(got, want)
    assert not torch.allclose(one[0], run(plain(kl_coef=0.3, **options), batch)[0])
    stopped = run(plain(kl_coef=0.3, **options), replace(batch, kl_coef=torch.zeros_like(batch.rewards)))
    torch.testing.assert_close(stopped[0], run(plain(), batch)[0])


def test_a_target_or_an_end_makes_the_coefficient_a_control():
    assert plain().controls == plain(kl_coef=0.3).controls == {}
    adapts = plain(kl_coef=0.3, kl_target=0.1, kl_horizon=4).controls
    # KL at 0.11 is 10 % over its target: 0.3 * (1 + 0.1 / 4).
    assert list(adapts) == ["kl_coef"] and adapts["kl_coef"].start == 0.3
    assert adapts["kl_coef"].next(0.3, {"kl/ref": 0.11}, 9) == pytest.approx(0.3075)
    moves = plain(kl_coef=0.3, kl_final=0.1, kl_steps=20, kl_schedule="linear").controls["kl_coef"]
    assert (moves.start, moves.next(9.0, {}, 5), moves.next(9.0, {}, 20)) == pytest.approx((0.3, 0.25, 0.1))
    # cos(pi / 4) = 0.70711: a way of 0.14645 of 0.2.
    waves = plain(kl_coef=0.3, kl_final=0.1, kl_steps=20, kl_schedule="cosine").controls["kl_coef"]
    assert waves.next(9.0, {}, 5) == pytest.approx(0.270711, abs=1e-6)


def test_kl_in_the_reward_is_taken_off_before_the_baseline():
    batch = example_batch((2,))
    equal = replace(batch, rewards=torch.zeros_like(batch.rewards), ref_logprobs=batch.old_logprobs.clone())
    equal.ref_logprobs[0] -= batch.loss_mask[0] * 0.5  # the first trajectory strays from the reference
    advantages = plain(kl_coef=1.0, kl="k1", kl_in="reward").advantages(equal, identity).advantages
    half = 0.5 * int(batch.loss_mask[0].sum()) / 2
    assert advantages[0][batch.loss_mask[0]].tolist() == pytest.approx([-half] * int(batch.loss_mask[0].sum()))
    assert advantages[1][batch.loss_mask[1]].tolist() == pytest.approx([half] * int(batch.loss_mask[1].sum()))


def test_kl_in_the_reward_leaves_the_rewards_as_given():
    batch = given_batch()
    assert torch.equal(plain(kl_coef=0.1, kl_in="reward").advantages(batch, identity).rewards, batch.rewards)


# Metrics


def test_metrics_are_of_the_policy_as_it_is_and_say_what_the_kl_costs():
    batch = given_batch()
    options = {"kl_coef": 0.3, "kl": "k1", "kl_turns": [2.0, 1.0]}
    *_, metrics = run(plain(**options), batch)
    new, on = some_logprobs(batch), batch.loss_mask
    bounded = {"ratio/bounded", "kl/bounded"}
    assert set(metrics) == {"plain/advantage", "ratio/mean", "kl/old", "kl/ref", "kl/penalty", *bounded}
    gap, away = batch.ref_logprobs - new, new - batch.old_logprobs
    torch.testing.assert_close(metrics["ratio/mean"][on], away.exp()[on])
    torch.testing.assert_close(metrics["kl/old"][on], (away.exp() - 1 - away)[on], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(metrics["kl/ref"][on], (gap.exp() - 1 - gap)[on], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(metrics["kl/penalty"], torch.where(batch.turn_ids == 0, 0.6, 0.3) * metrics["kl/ref"])
    assert set(run(plain(), batch)[-1]) == {"plain/advantage", "ratio/mean", "ratio/bounded", "kl/old"}


def test_a_methods_own_metrics_stand_over_the_shared_ones():
    def surrogate(logprobs, batch):
        return -batch.advantages * logprobs, {"ratio/mean": torch.full_like(batch.rewards, 7.0)}

    assert (run(policy_gradient("own", outcome(group_centered), surrogate, {}), given_batch())[-1]["ratio/mean"] == 7).all()


# The dual clip

RATIOS = ("grpo", "dr_grpo", "dapo", "rloo", "gspo", "gmpo", "clip_cov", "reinforce_pp", "reinforce_pp_baseline")


@pytest.mark.parametrize("name", RATIOS)
def test_a_dual_clip_bounds_every_loss_of_a_ratio(name):
    given = {"max_length": 8} if name == "dr_grpo" else {}
    make = import_object(BUILTIN[name])
    batch = given_batch()
    moved = batch.old_logprobs + torch.where(batch.loss_mask, 3.0, 0.0)  # e^3 times as likely

    def loss(**options):
        algorithm = make(**given, **options)
        filled = algorithm.advantages(batch, identity)
        return filled, *algorithm.loss(moved.clone(), filled)

    filled, bounded, metrics = loss(dual_clip=3.0)
    _, free, _ = loss()
    bad = filled.advantages < 0
    assert bad.any() and (free[bad] > 3.1 * -filled.advantages[bad]).all()
    torch.testing.assert_close(bounded[bad], -3.0 * filled.advantages[bad])
    assert torch.equal(bounded[~bad], free[~bad]) and torch.equal(metrics["ratio/dual_clipped"] > 0, bad)


@pytest.mark.parametrize("name", ["cispo", "nft", "rise", "kl_cov", "vapo"])
def test_a_loss_of_another_kind_refuses_it(name):
    with pytest.raises(ConfigError, match="algorithm.dual_clip bounds a ratio times an advantage"):
        import_object(BUILTIN[name])(dual_clip=3.0)


# The overlong filter


def test_filtered_trajectories_leave_the_loss_but_stay_in_the_baseline():
    batch = given_batch()  # trajectory 3 is truncated
    kept, filtered = (plain(overlong=how).advantages(batch, identity) for how in ("keep", "filter"))
    out = batch.truncated[:, None].expand_as(batch.loss_mask)
    assert kept.advantages[out].any() and not filtered.loss_mask[out].any() and not filtered.advantages[out].any()
    assert torch.equal(filtered.advantages[~out], kept.advantages[~out])
    assert torch.equal(filtered.loss_mask[~out], batch.loss_mask[~out])
    without = plain().advantages(batch.rows(~batch.truncated), identity)  # the control: had they not been sampled
    assert not torch.allclose(without.advantages, kept.advantages[~batch.truncated])


def test_filtered_streams_are_gone_also_where_they_held_something():
    batch = given_batch()
    filled = plain(overlong="filter", kl_coef=0.3, is_cap=2.0).advantages(batch, identity)
    for name in ("old_logprobs", "ref_logprobs", "advantages", "is_weights", "kl_coef", "entropy"):
        assert not getattr(filled, name)[batch.truncated].any() and getattr(filled, name)[~batch.truncated].any()


@pytest.mark.parametrize(
    ("make", "center"),
    [(reinforce_pp, True), (ppo, True), (lambda **shared: gdpo({"right": 1.0}, **shared), False)],
    ids=["reinforce_pp", "ppo", "gdpo"],
)
def test_filtered_tokens_leave_the_statistics_of_the_step(make, center):
    batch = given_batch(parts=torch.arange(13.0).sin()[example_batch((4, 3, 1, 5)).traj_ids][:, None])
    filled, kept = make(overlong="filter").advantages(batch, identity), make().advantages(batch, identity)
    trained = filled.advantages[filled.loss_mask].double()
    assert not filled.loss_mask[batch.truncated].any()
    assert float(trained.square().mean()) == pytest.approx(1.0, abs=1e-4)
    assert not center or float(trained.mean()) == pytest.approx(0.0, abs=1e-4)
    rest = kept.advantages[filled.loss_mask].double()  # the control: whitened together with what is filtered
    assert abs(float(rest.square().mean()) - 1) > 1e-3


def test_a_filtered_reflection_is_not_compared():
    batch = given_batch()
    filled = reflect_retry_reward(normalize=False, overlong="filter").advantages(batch, identity)
    alone = grpo(normalize=False).advantages(batch.rows(~batch.truncated), identity)
    assert torch.equal(filled.advantages[~batch.truncated], alone.advantages)
    assert not torch.equal(alone.advantages, grpo(normalize=False).advantages(batch, identity).advantages[~batch.truncated])


# What is needed, and what stands off the mask


def test_the_forward_passes_it_needs_follow_from_its_options():
    assert plain().needs == plain(entropy_coef=0.1, overlong="filter").needs == {"old_logprobs"}
    assert plain(kl_coef=0.1).needs == plain(kl_coef=0.1, kl_in="reward").needs == {"old_logprobs", "ref_logprobs"}

    def bare(**shared):
        return policy_gradient("bare", outcome(group_centered), lambda logprobs, batch: (-logprobs, {}), shared, needs=())

    assert bare().needs == set()
    assert bare(is_cap=2.0).needs == {"old_logprobs"} and bare(kl_coef=0.1).needs == {"old_logprobs", "ref_logprobs"}
    batch = replace(given_batch(), old_logprobs=None)
    assert bare().loss(some_logprobs(given_batch()), bare().advantages(batch, identity))[1] == {}


@pytest.mark.parametrize(
    ("options", "missing"),
    [({"kl_coef": 0.1, "kl_in": "reward"}, "ref_logprobs"), ({"is_cap": 2.0}, "old_logprobs")],
    ids=str,
)
def test_a_stream_that_is_not_there_is_told(options, missing):
    with pytest.raises(ValueError, match="not filled: name it in Algorithm.needs"):
        plain(**options).advantages(given_batch(**{missing: None}), identity)
    batch = given_batch()
    for algorithm, stream in ((plain(entropy_coef=0.1), "entropy"), (plain(kl_coef=0.1), "ref_logprobs")):
        with pytest.raises(ValueError, match="not filled"):
            algorithm.loss(some_logprobs(batch), replace(algorithm.advantages(batch, identity), **{stream: None}))


def test_a_batch_without_noise_is_0_off_the_mask_in_every_stream_that_a_loss_may_read():
    batch = given_batch()
    noisy = {name: torch.where(batch.loss_mask, 1.5, torch.nan).requires_grad_() for name in STREAMS}
    quiet = without_noise(replace(batch, **noisy))
    for name in STREAMS:
        assert torch.equal(getattr(quiet, name), torch.where(batch.loss_mask, 1.5, 0.0))
    (gradient,) = torch.autograd.grad(quiet.entropy.sum(), noisy["entropy"])
    assert torch.equal(gradient, batch.loss_mask.float())
    untouched = {"token_ids", "attention_mask", "loss_mask", "sources", "turn_ids", "rewards", "loss_weights", *PER_ROW}
    assert {f.name for f in fields(Batch)} == untouched | set(STREAMS), "a new stream belongs to one of the two"
    assert without_noise(replace(batch, values=None)).values is None


@pytest.mark.parametrize(
    "options", [{}, {"kl_coef": 0.3, "entropy_coef": 0.1, "is_cap": 2.0}, {"kl_coef": 0.3, "kl_in": "reward"}], ids=str
)
def test_noise_off_the_mask_reaches_neither_advantages_nor_loss(options):
    batch = given_batch()
    holes = {name: torch.where(batch.loss_mask, x, torch.nan) for name in STREAMS if (x := getattr(batch, name)) is not None}
    noisy, quiet = run(plain(**options), replace(batch, **holes)), run(plain(**options), batch)
    for got, want in zip(noisy[:3], quiet[:3], strict=True):
        assert torch.equal(got, want)

    def leaves_noise(given, reduce):
        filled = outcome(group_centered)(given, reduce)
        return replace(filled, advantages=torch.where(filled.loss_mask, filled.advantages, torch.inf))

    careless = policy_gradient("careless", leaves_noise, lambda logprobs, b: (-b.advantages * logprobs, {}), options)
    assert torch.equal(careless.advantages(batch, identity).advantages, quiet[3].advantages)
    assert leaves_noise(batch, identity).advantages.isinf().any()


def test_the_surrogate_sees_log_probabilities_of_trained_tokens_alone():
    seen = []

    def surrogate(logprobs, batch):
        seen.append(logprobs.detach())
        return masked(-logprobs, batch.loss_mask), {}

    batch = given_batch()
    algorithm = policy_gradient("watch", outcome(group_centered), surrogate, {})
    algorithm.loss(torch.where(batch.loss_mask, -1.0, torch.nan), algorithm.advantages(batch, identity))
    assert torch.equal(seen[0], -batch.loss_mask.float())


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"klcoef": 0.1}, "algorithm: unknown option 'klcoef'; valid: aggregation, max_length, overlong, kl_coef"),
        ({"kl": "k2"}, "algorithm.kl needs kl_coef > 0"),
        ({"kl_in": "reward"}, "algorithm.kl_in needs kl_coef > 0"),
        ({"kl_turns": [2.0]}, "algorithm.kl_turns needs kl_coef > 0"),
        ({"kl_target": 0.1}, "algorithm.kl_target needs kl_coef > 0"),
        ({"kl_final": 0.1}, "algorithm.kl_final needs kl_coef > 0"),
        ({"kl_horizon": 5, "kl_coef": 0.1}, "algorithm.kl_horizon needs kl_target"),
        ({"kl_steps": 5, "kl_coef": 0.1}, "algorithm.kl_steps needs kl_final"),
        ({"kl_schedule": "cosine", "kl_coef": 0.1}, "algorithm.kl_schedule needs kl_final"),
        ({"kl_coef": 0.1, "kl_target": 0.1, "kl_final": 0.2}, "algorithm.kl_final: expected nothing beside kl_target"),
        ({"kl_coef": 0.1, "kl_final": 0.1}, "algorithm.kl_final: expected another value than the start, got 0.1"),
        ({"kl_coef": 0.1, "kl_target": 0.0}, "algorithm.kl_target: expected more than 0, got 0"),
        ({"kl_coef": 0.1, "kl_target": 0.1, "kl_horizon": 0}, "algorithm.kl_horizon: expected at least 1, got 0"),
        ({"kl_coef": 0.1, "kl_final": -0.1}, "algorithm.kl_final: expected at least 0, got -0.1"),
        ({"kl_coef": 0.1, "kl_final": 0.0, "kl_steps": 0}, "algorithm.kl_steps: expected at least 1, got 0"),
        ({"kl_schedule": "step", "kl_coef": 0.1, "kl_final": 0.2}, "algorithm.kl_schedule: expected one of linear, cosine, got 'step'"),
        ({"kl": "k4", "kl_coef": 0.1}, "algorithm.kl: expected one of k1, k2, k3, k1+, k3+, k3_ratio, got 'k4'"),
        ({"kl": "k3+", "kl_in": "reward", "kl_coef": 0.1}, "algorithm.kl: expected one of k1, k2, k3 with kl_in = 'reward', got 'k3+'"),
        ({"kl_in": "rewards", "kl_coef": 0.1}, "algorithm.kl_in: expected one of loss, reward, got 'rewards'"),
        ({"kl_coef": -1.0}, "algorithm.kl_coef: expected at least 0, got -1.0"),
        ({"kl_coef": True}, "algorithm.kl_coef: expected at least 0, got True"),
        ({"kl_coef": 0.1, "kl_turns": [1.0, -1.0]}, "algorithm.kl_turns: expected factors of at least 0, got [1.0, -1.0]"),
        ({"entropy_coef": "high"}, "algorithm.entropy_coef: expected a number, got 'high'"),
        ({"overlong": "drop"}, "algorithm.overlong: expected one of keep, filter, got 'drop'"),
        ({"aggregation": "mean"}, "algorithm.aggregation: expected one of token, sequence, constant, got 'mean'"),
        ({"max_length": 10}, "algorithm.max_length needs aggregation = 'constant', got 'token'"),
        ({"aggregation": "constant"}, "algorithm.max_length: missing; 'constant' divides by it: set it to rollout.max_tokens"),
        ({"aggregation": "constant", "max_length": 0}, "algorithm.max_length: expected at least 1, got 0"),
        ({"is_cap": 0.0}, "algorithm.is_cap: expected more than 0, got 0.0"),
        ({"is_cap": 0.5, "is_mode": "mask", "is_floor": 0.5}, "algorithm.is_cap: expected more than 0.5, got 0.5"),
        ({"is_level": "sequence"}, "algorithm.is_level needs is_cap"),
        ({"is_mode": "mask"}, "algorithm.is_mode needs is_cap"),
        ({"is_floor": 0.5}, "algorithm.is_floor needs is_cap"),
        ({"is_cap": 2.0, "is_floor": 0.5}, "algorithm.is_floor needs is_mode = 'mask'"),
        ({"is_cap": 2.0, "is_mode": "mask", "is_floor": -0.5}, "algorithm.is_floor: expected at least 0, got -0.5"),
        ({"is_cap": 2.0, "is_level": "turn"}, "algorithm.is_level: expected one of token, sequence, geometric, got 'turn'"),
        ({"is_cap": 2.0, "is_mode": "drop"}, "algorithm.is_mode: expected one of truncate, mask, got 'drop'"),
    ],
    ids=str,
)
def test_an_option_that_is_wrong_or_does_not_apply_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        plain(**options)
    assert str(error.value).startswith(message)


def test_what_is_said_as_it_stands_anyway_is_no_error():
    plain(**DEFAULTS)
    assert plain(kl="k3", kl_turns=()).needs == {"old_logprobs"}


def test_a_methods_own_defaults_hold_until_the_user_chooses():
    def method(**shared):
        return policy_gradient(
            "method", outcome(group_centered), lambda logprobs, b: (-b.advantages * logprobs, {}), shared, {"kl": "k1", "kl_in": "reward"}
        )

    batch = given_batch()
    one, other = method(kl_coef=0.2), plain(kl_coef=0.2, kl="k1", kl_in="reward")
    assert torch.equal(run(one, batch)[0], run(other, batch)[0])
    assert torch.equal(run(method(kl_coef=0.2, kl="k2", kl_in="loss"), batch)[0], run(plain(kl_coef=0.2, kl="k2"), batch)[0])
    assert method(kl="k1").needs == {"old_logprobs"}  # said as it stands
    with pytest.raises(ConfigError, match="algorithm.kl needs kl_coef > 0"):
        method(kl="k3")


def test_what_a_method_is_besides_is_passed_on():
    def critic(values, batch):
        return values, {}

    made = policy_gradient(
        "m", outcome(group_centered), plain().loss, {}, needs=("values",), unit="pair", tags=("retry",), parts=("a",), value_loss=critic
    )
    assert (made.name, made.needs, made.unit, made.tags, made.parts) == ("m", {"values"}, "pair", ("retry",), ("a",))
    assert made.value_loss is critic
