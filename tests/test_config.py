from __future__ import annotations

import re
from typing import TypedDict, Unpack

import pytest
from pydantic import BaseModel

from rlft import algorithms, elsewhere, names
from rlft.algorithms.policy_gradient import DEFAULTS
from rlft.config import RECIPES, RunConfig, load, validate, whole_key
from rlft.data.sources import SUFFIXES
from rlft.effects import WHOLE_FILES
from rlft.errors import ConfigError
from rlft.names import bind
from rlft.report.folder import MARKER


def write(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    return path


def test_a_run_file_is_read_with_its_overrides(tmp_path):
    path = write(tmp_path, 'model = "m"\nsteps = 5\n[learner]\nlr = 1e-5\n[algorithm]\nname = "grpo"\nclip_high = 0.28\n')
    run = load(path, ["rollout.group_size=4", "data.source=tasks.jsonl", "learner.lr=3e-5", 'rollout.stop=["\\n"]'])
    assert (run.steps, run.learner.lr, run.rollout.group_size, run.data.source, run.rollout.stop) == (5, 3e-5, 4, "tasks.jsonl", ["\n"])
    assert run.algorithm == {"name": "grpo", "clip_high": 0.28}
    assert run.run_dir == "runs/run"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learner.lrr=1"], r"learner\.lrr: unknown key; did you mean 'lr'\?"),
        (["rolout.group_size=4"], r"rolout: unknown key; did you mean 'rollout'\?"),
        (["eval.data.sorce=x"], r"eval\.data\.sorce: unknown key; did you mean 'source'\?"),
        (["steps=many"], "steps: input should be a valid integer, got 'many'"),
        (["steps=true"], "steps: input should be a valid integer, got True"),
        (["steps=0"], "steps: .*greater than or equal to 1, got 0"),
        (["learner.zero_stage=4"], "learner.zero_stage: .*0, 1, 2 or 3, got 4"),
        (["rollout.group_size"], "expected key=value"),
        (["model.name=x"], "'model' is a value, not a table"),
        (["eval.pass_k=0"], r"eval.pass_k\[0\]: .*greater than or equal to 1, got 0"),
        (["eval.pass_k=1,-1"], r"eval.pass_k\[1\]: .*greater than or equal to 1, got -1"),
        (["eval.pass_k=[]"], r"eval.pass_k: .*at least 1 item.*, got \[\]"),
        (["learner.lr=inf"], "learner.lr: input should be a finite number, got inf"),
        (["rollout.temperature=nan"], "rollout.temperature: input should be a finite number, got nan"),
        (["learner.betas=[0.9, inf]"], r"learner.betas\[1\]: input should be a finite number, got inf"),
        (["guards.length=inf"], "guards.length: input should be a finite number, got inf"),
    ],
)
def test_a_wrong_key_or_value_is_an_error_that_says_what_to_do(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, 'model = "m"\n'), overrides)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("eval.pass_k=[1, 4]", "eval", [1, 4]),
        ("eval.pass_k=1,4", "eval", [1, 4]),
        ("eval.pass_k=4", "eval", [4]),
        ("learner.lora_targets=q_proj, v_proj", "learner", ["q_proj", "v_proj"]),
        ("rollout.stop=User", "rollout", ["User"]),
        ('rollout.stop=","', "rollout", [","]),
        ("data.prompt=a,b", "data", "a,b"),  # the control: no list
        ("data.prompt=Truth", "data", "Truth"),
    ],
)
def test_a_value_on_the_command_line_is_written_as_people_type_it(tmp_path, override, key, value):
    needed = ['eval.data.source="x.jsonl"', "learner.lora_rank=8"]
    section = getattr(load(write(tmp_path, 'model = "m"\n'), [*needed, override]), key)
    assert value in [getattr(section, name) for name in type(section).model_fields]


@pytest.mark.parametrize("said", ["true", "True", "false", "False"])
def test_yes_and_no_may_be_written_as_in_python(tmp_path, said):
    run = load(write(tmp_path, 'model = "m"\n'), [f"learner.offload_optimizer={said}", f"data.shuffle={said}"])
    assert run.learner.offload_optimizer is run.data.shuffle is (said in ("true", "True"))


def test_every_key_that_stands_for_one_of_another_library_is_a_key_of_ours():
    algorithm = {"clip_low", "clip_high", "name", "normalize", *DEFAULTS}  # options of [algorithm]
    for theirs, named in elsewhere.KEYS.items():
        said = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)+", named))
        assert all(whole_key(key) == key or key.startswith(("algorithm.", "eval.data")) for key in said), (theirs, named)
        plain = named.partition(",")[0].partition(" in ")[0].partition(" = ")[0]
        known = RunConfig.model_fields.keys() | algorithm
        assert said or "[reward]" in named or "nothing" in named or plain in known or set(plain.split(" and ")) <= known or "dtype" in plain


@pytest.mark.parametrize(
    ("key", "shown"),
    [("steps", "steps"), ("lr", "learner.lr"), ("group_size", "rollout.group_size"), ("eval.every", "eval.every"), ("rollout.lr", "")],
)
def test_a_key_is_found_by_its_last_part(key, shown):
    assert whole_key(key) == shown


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learner.lora_alpha=8.0", "learner.lora_alpha needs lora_rank > 0"),
        ("learner.min_lr_ratio=0.1", "learner.min_lr_ratio needs schedule"),
        ("rollout.max_refills=2", "rollout.max_refills needs drop_no_signal"),
        ('tracking.wandb_project="x"', "tracking.wandb_project needs wandb"),
        ("data={source = 'x.csv', split = 'test'}", "data.split applies to Hub names and folders only"),
        ("data={source = 'my_data:rows', split = 'test'}", "data.split applies to Hub names and folders only"),
        ("eval.data={source = 'x.jsonl', split = 'test'}", "eval.data.split applies to Hub names and folders only"),
        ("eval.data.options={seed = 1}", "eval.data.options applies to a 'module:function' source only"),
        ("data.options={seed = 1}", "data.options applies to a 'module:function' source only"),
        ("rollout.max_tokens=9999", "leaves no room for a prompt"),
        ("data.min_attempts=3", "data.min_attempts needs min_pass_rate or max_pass_rate"),
        ("data={min_pass_rate = 0.9, max_pass_rate = 0.2}", "data.min_pass_rate 0.9 is above max_pass_rate 0.2"),
        ('data={shuffle = false, curriculum = "learnable"}', "data.shuffle has no effect with curriculum = 'learnable'"),
        ('eval.data={source = "x.jsonl", max_pass_rate = 0.5}', "eval.data.max_pass_rate applies to training tasks only"),
        ("rollout.min_temperature=0.1", "rollout.min_temperature needs entropy_target"),
        ("rollout={entropy_target = 0.3, temperature = 2.0}", "rollout.temperature: expected a start between .*, got 2"),
        ('critic={shared = true, model = "m"}', "critic.model has no effect with shared = true"),
        ("critic={shared = true, num_epochs = 2}", "critic.num_epochs has no effect with shared = true"),
        ('guards.stop=["mismatch"]', "guards.stop: 'mismatch' needs guards.mismatch"),
    ],
)
def test_an_option_without_effect_is_an_error(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, 'model = "m"\n'), [override])


def test_overrides_are_a_list_of_texts(tmp_path):
    for wrong in ("steps=5", {"steps": 5}):
        with pytest.raises(ConfigError, match="overrides: expected a list of texts such as .'steps=5'."):
            load(write(tmp_path, 'model = "m"\n'), wrong)
    assert load(write(tmp_path, 'model = "m"\n'), ["steps=5"]).steps == 5


LATE = 'model = "m"\nsteps = 10\ndata.source = "x.jsonl"\neval.data.source = "x.jsonl"\n'


@pytest.mark.parametrize(
    ("key", "late", "fine"),
    [("eval.every", 11, 10), ("tracking.save_every", 11, 10), ("learner.warmup_steps", 10, 9)],
)
def test_what_would_begin_after_the_last_step_is_an_error_but_not_in_a_run_made_shorter_to_try_it(tmp_path, key, late, fine):
    message = f"{key} {late}: the run ends after 10 steps; set it lower"
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, f"{LATE}{key} = {late}\n"))
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, LATE), [f"{key}={late}", "steps=10"])
    load(write(tmp_path, LATE), [f"{key}={fine}"])  # the control
    short = load(write(tmp_path, f"{LATE}{key} = {fine}\n"), ["steps=2"])
    load(write(tmp_path, f"{MARKER}{short.to_toml()}"))  # what that run left, by which it goes on


def test_an_interval_of_stages_may_reach_to_the_end_of_the_last_one(tmp_path):
    staged = LATE.replace("steps = 10\n", "") + "[[stages]]\nsteps = 4\n[[stages]]\nsteps = 6\n"
    load(write(tmp_path, staged), ["eval.every=10", "tracking.save_every=10"])
    with pytest.raises(ConfigError, match="eval.every 11: the run ends after 10 steps"):
        load(write(tmp_path, staged), ["eval.every=11"])


def test_a_split_of_a_data_set_is_fine_and_files_are_told_apart_as_the_sources_do(tmp_path):
    for source in ("owner/name", "owner/name/subset", "folder"):
        assert load(write(tmp_path, 'model = "m"\n'), [f"data={{source = '{source}', split = 'test'}}"]).data.split == "test"
    assert set(WHOLE_FILES) == set(SUFFIXES)


def test_several_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, "steps = 0\n"))
    assert str(error.value).splitlines() == [
        "model: missing; every run file must set it",
        "steps: input should be greater than or equal to 1, got 0",
    ]


def test_a_missing_file_names_the_recipes():
    with pytest.raises(ConfigError, match=r"no run file 'nowhere.toml'; .*'demo'.*'starter'"):
        load("nowhere.toml")


def test_text_that_is_not_toml_is_told_with_its_place(tmp_path):
    with pytest.raises(ConfigError, match="run.toml: not valid TOML: .*line 2"):
        load(write(tmp_path, 'model = "m"\nsteps = = 3\n'))


@pytest.mark.parametrize("recipe", sorted(p.stem for p in RECIPES.glob("*.toml")))
def test_a_resolved_run_file_reads_back_as_itself(tmp_path, recipe):
    run = load(recipe)
    again = load(write(tmp_path, run.to_toml()))
    assert again == run
    assert validate({"model": "m"}) != run  # the control: a recipe is not all defaults


def test_there_are_no_more_than_about_a_hundred_and_thirty_keys():
    def count(section):
        annotations = [field.annotation for field in section.model_fields.values()]
        return sum(count(a) if isinstance(a, type) and issubclass(a, BaseModel) else 1 for a in annotations)

    assert 50 < count(RunConfig) <= 135


def make_guess(secret: int = 3, *, low: int = 0):
    return secret, low


class Shared(TypedDict, total=False):
    weight: float


def make_method(clip: float = 0.2, **shared: Unpack[Shared]):
    return clip, shared


def make_anything(**options):
    return options


def test_options_behind_a_typed_dict_are_known_by_its_keys():
    assert bind({"name": "m", "weight": 2.0}, {"m": make_method}, "algorithm")() == (0.2, {"weight": 2.0})
    for key, near in (("wieght", "weight"), ("clp", "clip")):
        with pytest.raises(ConfigError, match=f"algorithm.m: unknown option '{key}'; did you mean '{near}'"):
            bind({"name": "m", key: 1}, {"m": make_method}, "algorithm")
    with pytest.raises(ConfigError, match="unknown option 'shared'"):
        bind({"name": "m", "shared": {}}, {"m": make_method}, "algorithm")
    assert bind({"name": "a", "wieght": 1}, {"a": make_anything}, "algorithm")() == {"wieght": 1}  # the control: it takes anything


def test_names_resolve_to_built_ins_and_to_imports_with_their_options_bound():
    assert bind({"name": "guess", "secret": 5}, {"guess": make_guess}, "env")() == (5, 0)
    assert bind({"name": "rlft.names:nearest"}, {}, "env") is names.nearest
    assert bind({"name": "ok"}, {"ok": "rlft.names:nearest"}, "env") is names.nearest


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("gpro", "'grpo', 'gspo' or 'hgpo'?"),  # two letters swapped are one slip
        ("grp", "'grpo'?"),
        ("reinforc", "'reinforce'?"),
    ],
)
def test_the_likeliest_slip_is_named_first_and_others_only_where_they_are_close(key, near):
    assert names.nearest(key, algorithms.BUILTIN) == f"; did you mean {near}"
    assert names.nearest("quux", ["grpo", "ppo"]) == "; valid: grpo, ppo"  # the control


USERS = {
    "broken.py": "x = 1\n1 / 0\n",
    "unclosed.py": "def f(:\n",
    "needs.py": "import broken\n",
    "leaves.py": "raise SystemExit(3)\n",
    "lib.py": "import json\njson.loads('{')\n",
}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("broken:f", r"cannot import 'broken:f': ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("unclosed:f", r"cannot import 'unclosed:f': SyntaxError: .* \(unclosed.py, line 1: def f\(:\)"),
        ("needs:f", r"cannot import 'needs:f': ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("leaves:f", r"SystemExit: 3 \(leaves.py, line 1\)"),
        ("lib:f", r"JSONDecodeError: .*\(lib.py, line 2\)"),  # the user's line, not the one of Python's own module
        ("brokn:f", r"No module named 'brokn' \(looked in /.* and on Python's path\); did you mean 'broken'\?"),
    ],
)
def test_an_import_that_fails_is_told_with_the_users_own_file_and_line(tmp_path, monkeypatch, path, message):
    for name, text in USERS.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        names.import_object(path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "gess"}, "env: unknown name 'gess'; did you mean 'guess'\\?, or use 'module:attribute'"),
        ({"name": "guess", "secrt": 1}, "env.guess: unknown option 'secrt'; did you mean 'secret'\\?"),
        ({"name": "no_such_module:thing"}, "cannot import 'no_such_module:thing'"),
        ({"name": "rlft.config:thing"}, "cannot import 'rlft.config:thing'.*no attribute 'thing'"),
        ({"secret": 1}, "env.name is missing; valid: guess, or 'module:attribute'"),
    ],
)
def test_a_name_that_does_not_resolve_is_an_error(table, message):
    with pytest.raises(ConfigError, match=message):
        bind(table, {"guess": make_guess}, "env")


def test_a_tilde_is_the_users_home_and_an_empty_run_dir_is_one_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    text = 'model = "~/m"\nrun_dir = ""\nchat_template = "~/t.jinja"\n[data]\nsource = "~/p.jsonl"\n'
    config = load(write(tmp_path, text))
    assert (config.model, config.chat_template, config.data.source) == ("/home/ada/m", "/home/ada/t.jinja", "/home/ada/p.jsonl")
    assert config.run_dir == "runs/run"
    assert load(write(tmp_path, 'model = "ada/~m"'), ["run_dir=~/r"]).run_dir == "/home/ada/r"
