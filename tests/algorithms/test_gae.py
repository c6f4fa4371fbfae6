"""GAE: a table worked by hand, the explicit double sum over the trajectories themselves, and the laws."""

import random
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.gae import gae
from rlft.learner.batching import collate, empty_batch
from rlft.learner.rows import to_rows
from rlft.types import Completion, Source, Task, Trajectory, Turn

E, S, H = Source.ENVIRONMENT, Source.POLICY, Source.HINT


def play(steps, index=0, reward=0.0):
    """A trajectory from steps of (tokens of the environment, of the policy, reward, how): "" goes on in the same
    row, "rewrite" drops the history, "injected" puts words in the policy's mouth."""
    context, sources, turns = [], [], []
    for said, sampled, earned, how in steps:
        if how == "rewrite":
            context, sources = [], []
        prompt, before = [*context, *range(said)], [*sources, *[E] * said]
        written = [H if how == "injected" else S] * sampled
        completion = Completion([9] * sampled, [-0.5] * sampled, "stop", 0)
        turns.append(Turn(prompt, completion, {"role": "assistant"}, [*before, *written], earned))
        context, sources = [*prompt, *[9] * sampled], [*before, *written]
    return Trajectory(Task("t", ()), index, tuple(turns), "completed", "g", reward)


def batch_of(trajectories):
    return collate([row for trajectory in trajectories for row in to_rows(trajectory)], pad_id=0)


def test_one_step_of_the_environment_between_two_turns_as_worked_by_hand():
    batch = batch_of([play([(1, 2, 1.0, ""), (2, 1, 0.0, "")], reward=2.0)])
    values = torch.tensor([[100.0, 0.5, 1.0, 100.0, 100.0, 2.0]])
    # gamma = lam = 0.5. Deltas: 0 + 0.5 * 1 - 0.5 = 0, 1 + 0.5 * 2 - 1 = 1, 2 - 2 = 0.
    # Advantages from the end: 0, 1 + 0.25 * 0 = 1, 0 + 0.25 * 1 = 0.25. Returns add the values.
    advantages, returns = gae(batch, values, 0.5, 0.5)
    assert advantages.tolist() == [[0, 0.25, 1, 0, 0, 0]] and returns.tolist() == [[0, 0.75, 2, 0, 0, 2]]
    # By turn only the step from token 2 to token 5 is discounted. Deltas: 0 + 1 - 0.5 = 0.5, 1, 0.
    # Advantages: 0, 1 + 0.25 * 0 = 1, 0.5 + 1 = 1.5.
    advantages, returns = gae(batch, values, 0.5, 0.5, "turn")
    assert advantages.tolist() == [[0, 1.5, 1, 0, 0, 0]] and returns.tolist() == [[0, 2, 2, 0, 0, 2]]
    # The critic with lambda 1: returns are the discounted rewards: 2, 1 + 0.5 * 2 = 2, 0.5 * 2 = 1.
    advantages, returns = gae(batch, values, 0.5, 0.5, critic_lam=1.0)
    assert advantages.tolist() == [[0, 0.25, 1, 0, 0, 0]] and returns.tolist() == [[0, 1, 2, 0, 0, 2]]


def some_trajectories(seed, number=6):
    """Ragged ones of up to five turns, with rewritten histories, injected first attempts and turns that sampled nothing."""
    rng = random.Random(seed)
    out = []
    for i in range(number):
        steps = []
        for k in range(rng.randint(1, 5)):
            after = steps[-1][3] if steps else "start"
            how = rng.choice(["injected", ""]) if k == 0 else rng.choice(["rewrite", ""]) if after != "injected" else ""
            empty = how == "" and after in ("", "rewrite") and rng.random() < 0.3
            steps.append((rng.randint(1, 3), 0 if empty else rng.randint(1, 4), rng.uniform(-1, 1), how))
        out.append(play(steps, i, rng.uniform(0, 1)))
    return out


def policy_tokens(trajectory):
    """(turn, number in its turn, reward) of each of the policy's tokens, in order; a reward without one counts for the last before."""
    tokens = []
    for k, turn in enumerate(trajectory.turns):
        sampled = len(turn.completion.token_ids) if S in turn.sources[-1:] else 0
        tokens += [[k, j, 0.0] for j in range(sampled)]
        if tokens:
            tokens[-1][2] += turn.reward + (trajectory.reward if k == len(trajectory.turns) - 1 else 0.0)
    return tokens


OPTIONS = [
    {},
    {"gamma": 0.9, "lam": 0.7},
    {"gamma": 0.9, "lam": 0.7, "discount": "turn"},
    {"gamma": 1.0, "lam": 1.0},
    {"gamma": 0.99, "length_alpha": 0.3, "critic_lam": 1.0},
    {"gamma": 0.9, "length_alpha": 1.0, "critic_lam": 0.5, "discount": "turn"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_it_agrees_with_the_explicit_double_sum(options, seed):
    o = {"gamma": 1.0, "lam": 0.95, "discount": "token", "length_alpha": None, "critic_lam": None, **options}
    trajectories = some_trajectories(seed)
    batch = batch_of(trajectories)
    values = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(seed))
    advantages, returns = gae(batch, values, **options)
    want_advantages, want_returns = torch.zeros_like(values), torch.zeros_like(values)

    for m, trajectory in enumerate(trajectories):
        tokens = policy_tokens(trajectory)
        at = {}
        for b, row in enumerate(batch.turn_ids.tolist()):
            for k in set(row) - {-1} if batch.traj_ids[b] == m else ():
                at |= {(k, j): (b, t) for j, t in enumerate(t for t, turn in enumerate(row) if turn == k)}
        place = [at[k, j] for k, j, _ in tokens]
        v = [*(float(values[p]) for p in place), 0.0]
        lam = o["lam"] if o["length_alpha"] is None else max(0.0, 1 - 1 / (o["length_alpha"] * max(len(tokens), 1)))

        def decay(i, by, tokens=tokens):
            last = i + 1 == len(tokens)
            return by if o["discount"] == "token" or (not last and tokens[i + 1][0] != tokens[i][0]) else 1.0

        def estimate(i, lam, tokens=tokens, v=v, decay=decay):
            total, weight = 0.0, 1.0
            for j in range(i, len(tokens)):
                total += weight * (tokens[j][2] + decay(j, o["gamma"]) * v[j + 1] - v[j])
                weight *= decay(j, o["gamma"] * lam)
            return total

        for i, p in enumerate(place):
            want_advantages[p] = estimate(i, lam)
            want_returns[p] = estimate(i, lam if o["critic_lam"] is None else o["critic_lam"]) + v[i]
    torch.testing.assert_close(advantages, want_advantages, rtol=0, atol=1e-5)
    torch.testing.assert_close(returns, want_returns, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padding_and_the_order_of_rows_change_nothing(options):
    batch = batch_of(some_trajectories(1))
    values = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    plain = gae(batch, values, **options)
    wide = batch.map_tokens(lambda x: torch.nn.functional.pad(x, (0, 3), value=-1 if x is batch.turn_ids else 0))
    for one, other in zip(gae(wide, torch.nn.functional.pad(values, (0, 3), value=torch.nan), **options), plain, strict=True):
        assert torch.equal(one[:, :-3], other) and not one[:, -3:].any()
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    for one, other in zip(gae(batch.rows(order), values[order], **options), plain, strict=True):
        assert torch.equal(one, other[order])


def test_what_stands_off_the_policys_tokens_does_not_matter_but_for_its_rewards():
    batch = batch_of(some_trajectories(2))
    values = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    plain = gae(batch, values)
    for one, other in zip(gae(batch, torch.where(batch.turn_ids >= 0, values, torch.nan)), plain, strict=True):
        assert torch.equal(one, other) and not one[batch.turn_ids < 0].any()


def test_a_trajectory_by_itself_gets_what_it_gets_among_others():
    trajectories = some_trajectories(3)
    batch = batch_of(trajectories)
    values = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(0))
    whole, _ = gae(batch, values, 0.9, 0.9, length_alpha=0.5)
    for m in range(len(trajectories)):
        rows = batch.traj_ids == m
        alone, _ = gae(batch.rows(rows), values[rows], 0.9, 0.9, length_alpha=0.5)
        assert torch.equal(alone, whole[rows])


def test_a_reward_before_the_first_choice_counts_for_none_and_later_ones_for_the_token_before():
    injected = play([(2, 2, 8.0, "injected"), (1, 2, 0.5, "")])
    silent = play([(1, 2, 0.0, ""), (2, 0, 4.0, ""), (1, 1, 0.5, "rewrite"), (3, 0, 1.0, "rewrite")], index=1)
    elsewhere = play([(1, 3, 0.0, ""), (1, 0, 4.0, "rewrite"), (1, 1, 0.5, "")], index=2)
    batch = batch_of([injected, silent, elsewhere])
    _, returns = gae(batch, torch.zeros(batch.token_ids.shape), lam=1.0)
    assert returns[batch.turn_ids >= 0].tolist() == [0.5, 0.5, 5.5, 5.5, 1.5, 4.5, 4.5, 4.5, 0.5]


def test_with_lambda_one_returns_do_not_depend_on_the_critic():
    batch = batch_of(some_trajectories(4))
    g = torch.Generator().manual_seed(0)
    one, other = (torch.randn(batch.token_ids.shape, generator=g) for _ in range(2))
    torch.testing.assert_close(gae(batch, one, 0.9, 0.5, critic_lam=1.0)[1], gae(batch, other, 0.9, 0.5, critic_lam=1.0)[1])
    assert not torch.allclose(gae(batch, one, 0.9, 0.5)[1], gae(batch, other, 0.9, 0.5)[1])  # the control


def test_a_perfect_critic_leaves_no_advantage():
    batch = batch_of(some_trajectories(4))
    for discount in ("token", "turn"):
        _, returns = gae(batch, torch.zeros(batch.token_ids.shape), 0.9, 1.0, discount)
        advantages, _ = gae(batch, returns, 0.9, 0.5, discount)
        assert advantages.abs().max() < 1e-6 < returns.abs().max()


def test_a_large_offset_of_rewards_and_values_costs_little_precision():
    batch = batch_of([play([(1, 200, 0.0, "")], reward=2.0**20)])
    values = torch.full(batch.token_ids.shape, 2.0**20)
    assert not gae(batch, values, 1.0, 0.95)[0].any()


def test_lambda_grows_with_the_length_of_the_trajectory_over_all_its_rows():
    short, long = play([(1, 2, 0.0, "")], 0, 1.0), play([(1, 2, 0.0, ""), (1, 2, 0.0, "rewrite")], 1, 1.0)
    batch = batch_of([short, long])
    # l = 2: lam = 1 - 1 / (0.5 * 2) = 0: only the last token is credited. l = 4: lam = 1 - 1 / (0.5 * 4) = 0.5.
    advantages, _ = gae(batch, torch.zeros(batch.token_ids.shape), length_alpha=0.5)
    assert advantages[batch.turn_ids >= 0].tolist() == [0, 1, 0.125, 0.25, 0.5, 1]
    tiny, _ = gae(batch, torch.zeros(batch.token_ids.shape), length_alpha=0.01)  # never below 0
    assert tiny[batch.turn_ids >= 0].tolist() == [0, 1, 0, 0, 0, 1]


def test_a_rank_without_a_policy_token_gets_zeros():
    batch = empty_batch(0)
    for out in gae(batch, torch.zeros(batch.token_ids.shape), length_alpha=0.5):
        assert out.shape == batch.token_ids.shape and not out.any()


def test_it_leaves_the_given_batch_as_it_was():
    batch = batch_of(some_trajectories(0))
    rewards, values = batch.rewards.clone(), torch.ones_like(batch.rewards)
    gae(replace(batch, values=values), values)
    assert torch.equal(batch.rewards, rewards) and (values == 1).all()
