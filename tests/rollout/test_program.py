import asyncio
import random
from dataclasses import replace

import pytest
import torch
from families import family_tokenizer

from rlft.envs.base import Step
from rlft.envs.single_turn import SingleTurn
from rlft.learner.batching import collate
from rlft.learner.rows import to_rows
from rlft.rollout.program import run_episode, run_group
from rlft.rollout.renderer import Renderer
from rlft.types import Completion, Source, Task

TASK = Task("t", ({"role": "user", "content": "Go?"},))


class RandomPolicy:
    """Samples any ids at all, also such as no text encodes to, and remembers them."""

    version = 3

    def __init__(self, seed, vocabulary, eos, context=10_000, finish="stop"):
        self.rng, self.vocabulary, self.eos, self.context, self.finish = random.Random(seed), vocabulary, eos, context, finish
        self.sampled, self.contexts = [], []

    def room(self, prompt_ids):
        return self.context - len(prompt_ids)

    async def generate(self, prompt_ids):
        ids = [self.rng.randrange(self.vocabulary) for _ in range(self.rng.randrange(1, 9))]
        ids += [self.eos] if self.finish == "stop" else []
        self.sampled.append(ids)
        self.contexts.append(list(prompt_ids))
        return Completion(ids, [-0.5 * (i + 1) for i in range(len(ids))], self.finish, 3)


class Echo:
    """Answers every message with one of its own, `turns` times; pays a little for each."""

    tools = ()

    def __init__(self, turns):
        self.turns, self.closed = turns, False

    async def reset(self):
        return list(TASK.messages)

    async def step(self, action):
        self.turns -= 1
        return Step([{"role": "user", "content": f"You said {len(action['content'])} letters."}], 0.25, self.turns == 0)

    async def close(self):
        self.closed = True


class Speaks(Echo):
    """Answers with whatever it is given: `first` at the beginning, `then` later."""

    def __init__(self, first, then):
        super().__init__(turns=2)
        self.first, self.then = first, then

    async def reset(self):
        return self.first

    async def step(self, action):
        return Step(self.then)


def play(tokenizer, policy, env, max_turns=8):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    return asyncio.run(run_episode(TASK, env, policy, renderer, max_turns, 1, "g"))


def test_every_trained_id_is_a_sampled_id_and_every_sampled_id_is_trained(tokenizer):
    trained = sampled = 0
    for seed in range(20):
        policy = RandomPolicy(seed, len(tokenizer), tokenizer.eos_token_id)
        trajectory = play(tokenizer, policy, Echo(turns=4))
        batch = collate(to_rows(trajectory), pad_id=tokenizer.pad_token_id)
        assert batch.token_ids.shape[0] == 1, "contexts only grow, so an episode is one row"
        wanted = [token for ids in policy.sampled for token in ids]
        assert batch.token_ids[batch.loss_mask].tolist() == wanted
        assert torch.equal(batch.loss_mask, batch.sources == Source.POLICY)
        trained, sampled = trained + int(batch.loss_mask.sum()), sampled + len(wanted)
    assert trained == sampled > 200


def test_each_context_is_what_came_before_verbatim(tokenizer):
    policy = RandomPolicy(0, len(tokenizer), tokenizer.eos_token_id)
    play(tokenizer, policy, Echo(turns=3))
    for before, said, after in zip(policy.contexts, policy.sampled, policy.contexts[1:], strict=False):
        assert after[: len(before) + len(said)] == before + said


def test_sources_tell_who_wrote_each_token(tokenizer):
    policy = RandomPolicy(1, len(tokenizer), tokenizer.eos_token_id)
    trajectory = play(tokenizer, policy, Echo(turns=2))
    last = trajectory.turns[-1]
    prompt, first = len(policy.contexts[0]), len(policy.sampled[0])
    middle = len(last.prompt_ids) - prompt - first
    wanted = [Source.PROMPT] * prompt + [Source.POLICY] * first + [Source.ENVIRONMENT] * middle + [Source.POLICY] * len(policy.sampled[1])
    assert list(last.sources) == wanted
    assert trajectory.outcome == 0.5


def test_status_follows_from_position_and_finish_reason_not_from_ids(tokenizer):
    eos = tokenizer.eos_token_id
    ended = play(tokenizer, RandomPolicy(0, 9, eos), SingleTurn(TASK))
    cut = play(tokenizer, RandomPolicy(0, 9, eos, finish="length"), SingleTurn(TASK))
    out_of_turns = play(tokenizer, RandomPolicy(0, 9, eos), Echo(turns=5), max_turns=2)
    prompt = len(Renderer(tokenizer, [eos]).render(TASK.messages))
    out_of_room = play(tokenizer, RandomPolicy(0, 9, eos, context=prompt + 10), Echo(turns=5))
    assert [t.status for t in (ended, cut, out_of_turns, out_of_room)] == ["completed", "truncated", "truncated", "truncated"]
    assert [len(t.turns) for t in (ended, cut, out_of_turns, out_of_room)] == [1, 1, 2, 1]


def test_an_environment_is_closed_also_when_the_policy_fails(tokenizer):
    class Broken(RandomPolicy):
        async def generate(self, prompt_ids):
            raise RuntimeError("engine died")

    env = Echo(turns=2)
    try:
        play(tokenizer, Broken(0, 9, 1), env)
    except RuntimeError:
        assert env.closed
    else:
        raise AssertionError("the failure of the engine must reach the caller")


class Unwell(Echo):
    def __init__(self, reward):
        super().__init__(turns=3)
        self.reward = reward

    async def step(self, action):
        if isinstance(self.reward, Exception):
            raise self.reward
        return Step([{"role": "user", "content": "on"}], self.reward)


@pytest.mark.parametrize(
    ("reward", "cause"),
    [
        (float("nan"), "environment 'Unwell' gave the reward nan; expected a finite number"),
        (None, "environment 'Unwell' gave the reward None; expected a finite number"),
        (KeyError("door"), "environment 'Unwell' raised KeyError: 'door'"),
    ],
)
def test_an_environment_that_fails_makes_the_trajectory_failed_with_its_cause(tokenizer, reward, cause):
    env = Unwell(reward)
    trajectory = play(tokenizer, RandomPolicy(0, 9, tokenizer.eos_token_id), env)
    assert (trajectory.status, trajectory.error) == ("failed", cause) and env.closed
    assert play(tokenizer, RandomPolicy(0, 9, tokenizer.eos_token_id), Unwell(1.0)).status == "truncated"  # the control


def test_a_first_prompt_that_fills_the_context_fails_without_asking_the_policy(tokenizer):
    policy = RandomPolicy(0, 9, tokenizer.eos_token_id, context=1)
    trajectory = play(tokenizer, policy, SingleTurn(TASK))
    assert trajectory.status == "failed" and "leaves no room for an answer" in trajectory.error and not policy.sampled


def test_a_group_holds_one_episode_per_policy_handle(tokenizer):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    policies = [RandomPolicy(i, 99, tokenizer.eos_token_id) for i in range(3)]
    group = asyncio.run(run_group(TASK, "7/t", SingleTurn, policies, renderer, 1))
    assert [(t.index, t.group_id) for t in group.trajectories] == [(0, "7/t"), (1, "7/t"), (2, "7/t")]
    assert [list(t.turns[0].completion.token_ids) for t in group.trajectories] == [p.sampled[0] for p in policies]


def test_the_variants_of_a_task_are_played_in_turn_and_graded_by_their_own_answers(tokenizer):
    def way(order, answer):
        return Task(f"t/{order}", ({"role": "user", "content": order},), answer)

    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    policies = [RandomPolicy(i, 99, tokenizer.eos_token_id) for i in range(5)]
    task = replace(way("ab", "A"), variants=(way("ba", "B"),))
    group = asyncio.run(run_group(task, "7/t", SingleTurn, policies, renderer, 1))
    assert [t.task.answer for t in group.trajectories] == ["A", "B", "A", "B", "A"]
    assert [list(t.turns[0].prompt_ids) for t in group.trajectories] == [renderer.render(t.task.messages) for t in group.trajectories]
    assert {t.group_id for t in group.trajectories} == {"7/t"}


def test_a_conversation_is_everything_that_was_said_in_order(tokenizer):
    trajectory = play(tokenizer, RandomPolicy(1, 99, tokenizer.eos_token_id), Echo(turns=3))
    said = [turn.action for turn in trajectory.turns]
    replies = [{"role": "user", "content": f"You said {len(action['content'])} letters."} for action in said]
    assert trajectory.conversation == (*TASK.messages, said[0], replies[0], said[1], replies[1], said[2])


def test_a_first_attempt_that_was_given_before_is_the_first_turn_and_is_never_trained(tokenizer):
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    task = replace(TASK, first_attempt="Went.")
    policies = [RandomPolicy(i, len(tokenizer), tokenizer.eos_token_id) for i in range(2)]
    group = asyncio.run(run_group(task, "7/t", lambda task: Echo(turns=2), policies, renderer, 8))
    for trajectory, policy in zip(group.trajectories, policies, strict=True):
        first, second = trajectory.turns
        given = renderer.target("Went.")
        assert list(first.completion.token_ids) == given and first.action["content"] == "Went." and first.reward == 0.25
        assert (first.completion.policy_version, trajectory.status, len(policy.sampled)) == (3, "completed", 1)
        assert (first.tag, second.tag) == ("given", "")
        prompt = len(first.prompt_ids)
        assert list(second.sources[prompt : prompt + len(given)]) == [Source.HINT] * len(given)
        batch = collate(to_rows(trajectory), pad_id=tokenizer.pad_token_id)
        assert batch.token_ids[batch.loss_mask].tolist() == policy.sampled[0]
    plain = play(tokenizer, RandomPolicy(0, len(tokenizer), tokenizer.eos_token_id), Echo(turns=2))
    assert Source.HINT not in plain.turns[1].sources  # the control: without one, every turn is sampled


@pytest.mark.parametrize("said", ["hello", TASK.messages[0], [{"role": "user", "content": 5}], None], ids=repr)
def test_messages_of_another_shape_fail_the_trajectory_by_name(said):
    tokenizer = family_tokenizer("chatml")
    policy = RandomPolicy(0, len(tokenizer), tokenizer.eos_token_id)
    good = list(TASK.messages)
    assert play(tokenizer, policy, Speaks(good, good), max_turns=2).status != "failed"  # the control
    for env in (Speaks(said, good), Speaks(good, said)):
        played = play(tokenizer, policy, env, max_turns=2)
        assert played.status == "failed" and played.error.startswith("environment 'Speaks' said no messages: ")
        assert env.closed


def test_a_first_attempt_stands_in_the_context_as_the_template_writes_it():
    tokenizer = family_tokenizer("llama")
    renderer = Renderer(tokenizer, [tokenizer.eos_token_id])
    task = replace(TASK, first_attempt=" 4 ")
    policy = RandomPolicy(0, len(tokenizer), tokenizer.eos_token_id)
    first, *_ = asyncio.run(run_episode(task, Echo(turns=3), policy, renderer, 2)).turns
    whole = [*TASK.messages, {"role": "assistant", "content": " 4 "}]
    assert [*first.prompt_ids, *first.completion.token_ids] == renderer.chat.ids(whole, open_answer=False)


def test_every_turn_knows_the_thought_that_its_prompt_opened():
    tokenizer = family_tokenizer("chatml")
    policy = RandomPolicy(0, len(tokenizer), tokenizer.eos_token_id)
    assert [turn.opened for turn in play(tokenizer, policy, Echo(turns=3)).turns] == ["", "", ""]
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    assert [turn.opened for turn in play(tokenizer, policy, Echo(turns=3)).turns] == ["<think>"] * 3
