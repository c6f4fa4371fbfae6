"""Which tasks a run keeps: those that the chat template renders, and that leave room for an answer."""

from functools import partial

import pytest
from families import family_tokenizer

from rlft.config import validate
from rlft.envs.single_turn import SingleTurn
from rlft.errors import ConfigError, DataError
from rlft.rollout.renderer import Renderer
from rlft.runs.fit import fit_context, fit_demonstrations, offered
from rlft.types import Task

TURN = (
    "{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if m['role'] != 'human' %}<|im_start|>{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "add", "description": "x" * 40}}
FRAME = 3  # tokens that the template writes around a prompt of one message; the tokenizer has one token a byte


@pytest.fixture(scope="module")
def renderer():
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = TURN
    return Renderer(tokenizer, [tokenizer.eos_token_id])


def task(i, length, role="user", **more):
    return Task(str(i), ({"role": role, "content": "x" * length},), **more)


def config(max_tokens=10, max_model_len=60):
    return validate({"model": "m", "rollout": {"max_tokens": max_tokens, "max_model_len": max_model_len}})


def test_a_task_is_kept_where_one_token_has_room_and_set_aside_where_none_has(renderer):
    fitted = fit_context([task(1, 60 - FRAME - 1), task(2, 60 - FRAME)], renderer, config())
    assert [t.id for t in fitted.tasks] == ["1"]
    assert str(fitted.bad_rows[0]) == "task 2, row 2, field 'prompt': 60 tokens leave no room in rollout.max_model_len 60"


def test_tasks_that_leave_less_than_max_tokens_are_kept_and_counted(renderer):
    short, tight = task(1, 60 - FRAME - 10), task(2, 60 - FRAME - 9)
    assert fit_context([short], renderer, config()).note == ""  # the control: room for all of max_tokens
    fitted = fit_context([short, tight], renderer, config())
    assert len(fitted.tasks) == 2
    told = "1 of 2 prompts leave less room than rollout.max_tokens 10 in rollout.max_model_len 60, the least 9 tokens"
    assert fitted.note.startswith(told)


def test_tools_count(renderer):
    tasks = [task(1, 20)]
    assert fit_context(tasks, renderer, config()).tasks == tasks
    with pytest.raises(DataError, match=r"every prompt is longer than the context: .*, 1 tools included, leave no room"):
        fit_context(tasks, renderer, config(), [TOOL])


def test_the_longest_way_of_putting_a_task_counts(renderer):
    with pytest.raises(DataError, match="70 tokens leave no room|73 tokens leave no room"):
        fit_context([task(1, 5, variants=(task(2, 70),))], renderer, config())


def test_a_role_that_the_template_does_not_render_is_set_aside_by_name(renderer):
    fitted = fit_context([task(1, 5), task(2, 5, role="human")], renderer, config())
    assert [t.id for t in fitted.tasks] == ["1"]
    assert "does not render role 'human'" in fitted.bad_rows[0].reason
    with pytest.raises(DataError, match="no prompt is left that the chat template renders .*role 'human'"):
        fit_context([task(2, 5, role="human")], renderer, config())


def test_many_tasks_are_counted_like_each_alone(renderer):
    tasks = [task(i, i % 70) for i in range(1, 2100)]
    fitted = fit_context(tasks, renderer, config())
    assert [t.id for t in fitted.tasks] == [t.id for t in tasks if len(t.messages[0]["content"]) + FRAME < 60]
    assert len(fitted.tasks) + len(fitted.bad_rows) == len(tasks)


def test_a_demonstration_that_cannot_be_taught_is_set_aside(renderer):
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = TURN.replace("{{ m['content'] }}", "{{ m['content'].split('#')[-1] }}")
    drops = Renderer(tokenizer, [tokenizer.eos_token_id])
    tasks = [task(1, 5, answer="4"), task(2, 5, answer="thought # 4")]
    assert len(fit_demonstrations(tasks, renderer).tasks) == 2  # the control
    fitted = fit_demonstrations(tasks, drops)
    assert [t.id for t in fitted.tasks] == ["1"]
    assert fitted.bad_rows[0].field == "answer" and "leaves out a part of the answer" in fitted.bad_rows[0].reason
    with pytest.raises(DataError, match="task 3 has no answer, the text to learn"):
        fit_demonstrations([task(3, 5)], renderer)


class Calculator(SingleTurn):
    """Offers a tool, and counts how many of it were made and closed."""

    tools = (TOOL,)
    made = closed = 0

    def __init__(self, task):
        super().__init__(task)
        type(self).made += 1

    async def close(self):
        type(self).closed += 1


class Decides(Calculator):
    """Says which tools it has when it is made."""

    tools = property(lambda self: [TOOL])


class Speaks(Calculator):
    roles = ("user",)


def test_an_environments_class_is_asked_for_tools_and_roles():
    assert offered(SingleTurn, task(1, 5)) == ([], ("user",))
    assert offered(partial(Calculator), task(1, 5)) == ([TOOL], ("tool",)) and Calculator.made == 0
    assert offered(Speaks, task(1, 5)).roles == ("user",)


def test_one_that_has_to_be_made_for_that_is_closed():
    for make in (Decides, lambda task: Decides(task)):
        Decides.made = Decides.closed = 0
        assert offered(make, task(1, 5)) == ([TOOL], ("tool",)) and Decides.made == Decides.closed == 1


def test_an_environment_that_cannot_be_made_is_named():
    def broken(task):
        raise KeyError("no such level")

    with pytest.raises(ConfigError, match="making and closing one for task 1 raised KeyError: 'no such level'"):
        offered(broken, task(1, 5))
