import asyncio

import pytest

from rlft.envs import BUILTIN
from rlft.envs.attempts import MESSAGE, Attempts
from rlft.envs.reflect import REFLECT, RETRY, ReflectRetry
from rlft.errors import ConfigError
from rlft.names import bind
from rlft.rollout.program import run_episode
from rlft.testing.fakes import CharRenderer
from rlft.types import Completion, Task

TASK = Task("t", ({"role": "user", "content": "6*7?"},), 42)


class Says:
    version = 3

    def __init__(self, *lines, finish="stop"):
        self.lines, self.finish, self.contexts = list(lines), finish, []

    def room(self, prompt_ids):
        return 1000

    async def generate(self, prompt_ids):
        self.contexts.append("".join(map(chr, prompt_ids)))
        ids = [ord(char) for char in self.lines.pop(0)]
        return Completion(ids, [-1.0] * len(ids), self.finish, self.version)


def play(env, *lines, task=TASK, max_turns=8, finish="stop"):
    return asyncio.run(run_episode(task, env, Says(*lines, finish=finish), CharRenderer(), max_turns))


def course(trajectory):
    return [(turn.tag, turn.action["content"], turn.reward) for turn in trajectory.turns]


def test_attempts_are_asked_for_in_the_same_words_after_right_and_wrong_ones():
    for first in ("42", "41"):
        played = play(Attempts(TASK), first, "43")
        assert course(played) == [("attempt", first, 0.0), ("attempt", "43", 0.0)] and played.status == "completed"
        assert played.turns[1].observed == ({"role": "user", "content": MESSAGE},)


def test_there_are_as_many_attempts_as_asked_for_and_the_message_is_an_option():
    played = play(Attempts(TASK, num_attempts=3, message="Once more."), "1", "2", "3")
    assert [turn.action["content"] for turn in played.turns] == ["1", "2", "3"]
    assert [turn.observed[-1]["content"] for turn in played.turns] == ["6*7?", "Once more.", "Once more."]
    assert len(play(Attempts(TASK, num_attempts=1), "1").turns) == 1


def test_with_a_check_the_first_right_attempt_ends_the_episode_and_earns_one():
    played = play(Attempts(TASK, num_attempts=3, check="exact"), "41", " 42\n")
    assert course(played) == [("attempt", "41", 0.0), ("attempt", " 42\n", 1.0)] and played.status == "completed"
    assert course(play(Attempts(TASK, check="exact"), "1", "2")) == [("attempt", "1", 0.0), ("attempt", "2", 0.0)]


def test_attempts_give_turn_rewards_only_where_they_check():
    assert Attempts(TASK, check="exact").gives_turn_rewards and not Attempts(TASK).gives_turn_rewards
    assert ReflectRetry(TASK).gives_turn_rewards


def test_a_right_answer_ends_without_a_reflection():
    assert course(play(ReflectRetry(TASK), "42")) == [("attempt", "42", 1.0)]


@pytest.mark.parametrize(("retry", "earned"), [("42", 1.0), ("40", 0.0)])
def test_after_a_wrong_answer_comes_a_reflection_and_a_retry(retry, earned):
    played = play(ReflectRetry(TASK), "41", "42", retry)
    # The reflection happens to be the answer: it is not graded.
    assert course(played) == [("attempt", "41", 0.0), ("reflection", "42", 0.0), ("retry", retry, earned)]
    assert [turn.observed[-1]["content"] for turn in played.turns] == ["6*7?", REFLECT, RETRY] and played.status == "completed"


def about_right(task, text):
    return abs(int(text) - task.answer) <= 1


def test_a_check_is_a_function_of_task_and_text_or_its_name():
    made = bind({"name": "reflect_retry", "check": about_right}, BUILTIN, "env")
    assert course(play(made(TASK), "41")) == [("attempt", "41", 1.0)] and len(play(made(TASK), "40", "", "42").turns) == 3
    named = bind({"name": "attempts", "check": "operator:ne"}, BUILTIN, "env")
    assert course(play(named(TASK), "41")) == [("attempt", "41", 1.0)]  # a task is not equal to a text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Attempts(TASK, num_attempts=0), "env.num_attempts: expected at least 1, got 0"),
        (lambda: Attempts(TASK, check="exactly"), "env.check: expected 'exact' or 'module:function', got 'exactly'"),
        (lambda: ReflectRetry(TASK, check="no_such_module:right"), "cannot import 'no_such_module:right'"),
    ],
)
def test_wrong_options_say_so_before_the_episode(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_cut_attempt_is_the_last():
    played = play(Attempts(TASK), "4", "42", finish="length")
    assert len(played.turns) == 1 and played.status == "truncated"
