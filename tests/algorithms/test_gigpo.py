"""GiGPO: a table, an oracle over the turns themselves, and the laws."""

import random
import statistics
from dataclasses import replace

import pytest
import torch

from rlft.algorithms.gigpo import gigpo
from rlft.algorithms.grpo import grpo
from rlft.errors import ConfigError
from rlft.learner.batching import collate
from rlft.learner.rows import to_rows
from rlft.testing.checks import check_algorithm, example_batch
from rlft.types import Completion, Source, Task, Trajectory, Turn


def play(steps, index=0, group="g"):
    """A trajectory from steps of (what the environment says, what the policy says, reward)."""
    context, sources, turns = [], [], []
    for said, sampled, reward in steps:
        context, sources = [*context, *said], [*sources, *[Source.ENVIRONMENT] * len(said)]
        written = [*sources, *[Source.POLICY] * len(sampled)]
        turns.append(Turn(context, Completion(sampled, [-0.5] * len(sampled), "stop", 0), {"role": "assistant"}, written, reward))
        context, sources = [*context, *sampled], written
    return Trajectory(Task("t", ()), index, tuple(turns), "completed", group)


def batch_of(trajectories):
    batch = collate([row for trajectory in trajectories for row in to_rows(trajectory)], pad_id=0)
    return replace(batch, old_logprobs=batch.rollout_logprobs)


@pytest.mark.parametrize("options", [{}, {"normalize": False, "gamma": 1.0}, {"step_weight": 0.5, "kl_coef": 0.1}], ids=str)
def test_it_keeps_the_laws(options):
    check_algorithm(gigpo(**options))


def test_advantages_as_worked_by_hand():
    one = play([([1], [5], 0.0), ([2], [6], 0.0), ([3], [7], 1.0)])  # start, door, key
    two = play([([1], [6], 0.0), ([3], [8], 0.0)], index=1)  # start, key
    batch = batch_of([one, two])
    got = gigpo(gamma=0.5, step_weight=2.0, normalize=False).advantages(batch, lambda x: x).advantages
    # Episodes: 1 - 1/2, 0 - 1/2. Earned from each turn on: 0.25, 0.5, 1 and 0, 0. At the start 0.25 and 0: 1/8, -1/8; with
    # the key 1 and 0: 1/2, -1/2; at the door one of them alone: 0.
    assert got.tolist() == [[0, 0.5 + 0.25, 0, 0.5, 0, 0.5 + 1], [0, -0.5 - 0.25, 0, -0.5 - 1, 0, 0]]


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_advantages_agree_with_a_naive_oracle(seed, normalize):
    rng = random.Random(seed)
    played = [
        [([rng.randint(1, 2)], [rng.randint(5, 9)] * rng.randint(1, 3), rng.randint(0, 4) / 4) for _ in range(rng.randint(1, 4))]
        for _ in range(8)
    ]
    batch = batch_of([play(steps, i // 2, f"g{i % 2}") for i, steps in enumerate(played)])

    def compared(value, members):
        distance = value - statistics.fmean(members)
        return distance / (statistics.pstdev(members) + 1e-6) if normalize else distance

    def to_go(steps, k):
        return sum(0.9 ** (j - k) * steps[j][2] for j in range(k, len(steps)))

    got = gigpo(gamma=0.9, normalize=normalize).advantages(batch, lambda x: x).advantages
    for m, steps in enumerate(played):
        group = [other for n, other in enumerate(played) if n % 2 == m % 2]
        episode = compared(sum(reward for *_, reward in steps), [sum(reward for *_, reward in other) for other in group])
        for k, (said, *_) in enumerate(steps):
            alike = [to_go(other, j) for other in group for j in range(len(other)) if other[j][0] == said]
            turn = batch.turn_ids[m] == k
            assert got[m][turn].tolist() == pytest.approx([episode + compared(to_go(steps, k), alike)] * int(turn.sum()), abs=1e-4)


def test_where_no_state_is_shared_it_is_grpo():
    batch = example_batch()
    batch = replace(batch, token_ids=torch.arange(batch.token_ids.numel()).view_as(batch.token_ids))
    one, other = (algorithm.advantages(batch, lambda x: x).advantages for algorithm in (gigpo(), grpo()))
    assert torch.equal(one, other) and one.any()


def test_states_of_different_groups_are_not_compared():
    batch = batch_of([play([([1], [5], 1.0)], group="g"), play([([1], [5], 0.0)], group="h")])
    assert not gigpo().advantages(batch, lambda x: x).advantages.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "algorithm.gamma: expected 0 to 1, got 1.5"),
        ({"step_weight": 0.0}, "algorithm.step_weight: expected more than 0; grpo has no steps, got 0.0"),
    ],
)
def test_an_option_that_is_wrong_says_so(options, message):
    with pytest.raises(ConfigError) as error:
        gigpo(**options)
    assert str(error.value) == message
