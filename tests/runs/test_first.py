"""What a run file tells before torch is loaded: what is fine beside what is refused."""

import pytest

from rlft.config import validate
from rlft.errors import ConfigError
from rlft.runs.applies import check_evaluates
from rlft.runs.first import make_env_fn, make_terms

ENVS = """
import functools

class Whole:
    def __init__(self, task, turns=1): ...
    async def reset(self): ...
    async def step(self, action): ...
    async def close(self): ...

class NoClose(Whole):
    close = None

class Handed:
    def __init__(self, task): ...
    def __getattr__(self, name): ...

def function(task):
    return Whole(task)

bound = functools.partial(functools.partial(NoClose, turns=2))
"""


@pytest.fixture
def envs(tmp_path, monkeypatch):
    (tmp_path / "envs_of_test_first.py").write_text(ENVS)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name, **options: make_env_fn(run_file(env={"name": f"envs_of_test_first:{name}", **options}), None)


def run_file(**table):
    return validate({"model": "m", "reward": {"exact_match": 1.0}, **table})


@pytest.mark.parametrize("name", ["NoClose", "bound"])
def test_a_class_that_lacks_a_method_of_environments_is_refused(envs, name):
    with pytest.raises(ConfigError, match=f"env 'envs_of_test_first:{name}': the class has no method close; an environment has"):
        envs(name)


def test_an_option_hides_no_lacking_method(envs):
    with pytest.raises(ConfigError, match="the class has no method close"):
        envs("NoClose", turns=3)


@pytest.mark.parametrize("name", ["Whole", "Handed", "function"])
def test_a_class_with_all_methods_is_taken_and_so_is_what_may_have_them(envs, name):
    envs(name)


def test_a_metric_is_a_part_of_the_reward_where_the_environment_adds_none():
    held = {"metric": "mach", "data": {"source": "x.jsonl"}}
    with pytest.raises(ConfigError, match=r"eval.metric 'mach': no part of \[reward\] has that name; did you mean 'match'\?"):
        make_terms(run_file(eval=held, reward={"match": {"fn": "exact_match"}}), None, None)
    make_terms(run_file(eval=held, reward={"mach": {"fn": "exact_match"}}), None, None)  # the control
    make_terms(run_file(eval=held, env={"name": "attempts"}), None, None)  # this one may give parts of its own
    make_terms(run_file(eval=held), None, lambda task: task)  # and so may one that is handed in


@pytest.mark.parametrize("key", ["every", "samples", "max_tokens", "temperature", "greedy", "metric", "threshold"])
def test_how_held_out_tasks_are_sampled_needs_such_tasks(key):
    value = {"every": 2, "samples": 2, "max_tokens": 9, "temperature": 0.5, "greedy": True, "metric": "exact_match", "threshold": 0.5}[key]
    config = run_file(eval={key: value})
    check_evaluates(config, True)  # the control: tasks may be handed in
    with pytest.raises(ConfigError, match=f"eval.{key} needs eval.data.source"):
        check_evaluates(config, False)


@pytest.mark.parametrize("used", [{"rollout": {"max_turns": 2}}, {"data": {"curriculum": "easy_first"}}, {"data": {"max_pass_rate": 0.9}}])
def test_what_is_right_counts_in_training_too_where_attempts_or_pass_rates_do(used):
    check_evaluates(run_file(eval={"metric": "exact_match", "threshold": 0.5}, **used), False)
    with pytest.raises(ConfigError, match="eval.samples needs"):
        check_evaluates(run_file(eval={"samples": 2}, **used), False)
