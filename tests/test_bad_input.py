"""Bad input is told before any actor starts, in words that say what to do."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from mistakes import MISTAKES, lay

import rlft
from rlft import cli
from rlft.algorithms.grpo import grpo
from rlft.errors import ConfigError, DataError, RlftError
from rlft.runs import beginning
from rlft.types import Task


class Started(Exception):
    """The run passed every check and would start Ray now."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch, tmp_path):
    """Stops a run where actors would start; relative paths are the test's own."""

    @contextmanager
    def session(*_, **__):
        raise Started
        yield

    monkeypatch.setattr(beginning, "ray_session", session)
    monkeypatch.chdir(tmp_path)


def ask(text="1+1="):
    return json.dumps({"prompt": text, "answer": "2"})


@pytest.fixture
def write_run(tmp_path, tiny_model):
    """Writes a good run file and its data; overrides make it bad."""

    def write(rows=None):
        (tmp_path / "tasks.jsonl").write_text("\n".join([ask()] if rows is None else rows))
        file = tmp_path / "run.toml"
        sections = '[data]\nsource = "tasks.jsonl"\n[rollout]\nmax_tokens = 8\nmax_model_len = 64\n[reward]\nexact_match = 1.0\n'
        file.write_text(f'model = "{tiny_model}"\n{sections}')
        return file

    return write


TRAIN = [
    (["chat_template=broken.jinja"], ConfigError, "chat_template 'broken.jinja': no Jinja template: line 1: .*; correct it there"),
    (["data.source=here/none"], DataError, "no such file or folder .*expected a .jsonl"),
    (['reward={":f" = 1.0}'], ConfigError, "cannot import ':f': expected 'module:attribute'"),
    (["env.name=json:NoEnv"], ConfigError, "cannot import 'json:NoEnv'.*no attribute 'NoEnv'"),
    (["env.name=rlft:Turn"], ConfigError, "env 'rlft:Turn': missing a required argument"),
    (["algorithm.name=json:dumps"], ConfigError, "algorithm 'json:dumps': missing a required argument: 'obj'"),
    (["algorithm.name=os:getcwd"], ConfigError, "algorithm 'os:getcwd': expected it to return an Algorithm, got str"),
    (["rollout.top_p=0.9"], ConfigError, "rollout.top_p 0.9: algorithm 'grpo' needs samples of the policy itself.*set them in .eval."),
    (["rollout.top_k=20"], ConfigError, "rollout.top_k 20: algorithm 'grpo' needs samples"),
    (["algorithm.name=reinforce", "rollout.min_p=0.1"], ConfigError, "rollout.min_p 0.1: algorithm 'reinforce' needs samples"),
    (
        ["rollout.max_model_len=0", "rollout.max_tokens=1024"],
        ConfigError,
        "max_tokens 1024 leaves no room for a prompt in max_model_len 1024",
    ),
    (["run_dir=" + "n" * 300], ConfigError, "cannot be written: File name too long; choose another"),
    (["run_dir=here"], ConfigError, "run_dir 'here' exists, holds no rlft run and is never overwritten; choose another"),
]


@pytest.mark.parametrize(("overrides", "error", "message"), TRAIN, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_bad_run_file_is_refused_before_anything_starts(write_run, tmp_path, overrides, error, message):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").touch()
    (tmp_path / "here.txt").touch()
    (tmp_path / "broken.jinja").write_text("{% for m in %}")
    with pytest.raises(error, match=message):
        rlft.train(rlft.load(write_run(), overrides))


def made_in_python(mistake):
    """Whether a mistake of the command line can be made with `rlft.train` as well, in this process."""
    plain = mistake.exit == 1 and not mistake.env
    return plain and mistake.arguments[:2] == ["train", "run.toml"] and set(mistake.arguments[2::2]) <= {"--set"}


@pytest.fixture
def fresh_modules(tmp_path, monkeypatch):
    """Modules are looked for in the test's folder, and forgotten with it."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("mistake", list(filter(made_in_python, MISTAKES)), ids=lambda mistake: mistake.name)
def test_python_tells_a_mistake_in_the_words_of_the_command_line(tmp_path, tiny_model, fresh_modules, mistake):
    lay(tmp_path, mistake, tiny_model)
    with pytest.raises(RlftError, match=mistake.told):
        rlft.train(rlft.load("run.toml", mistake.arguments[3::2]))


def test_the_good_run_file_that_these_are_made_from_would_start(write_run):
    with pytest.raises(Started):
        rlft.train(rlft.load(write_run()))


@pytest.mark.parametrize("overrides", [["algorithm.name=rft", "rollout.top_p=0.9", "rollout.group_size=1"], ["rollout.max_model_len=0"]])
def test_what_these_options_do_not_harm_would_start(write_run, overrides):
    with pytest.raises(Started):
        rlft.train(rlft.load(write_run(), overrides))


def test_a_model_folder_must_hold_weights_and_a_tokenizer(write_run, tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "model")
    for part, message in (("tokenizer*", "no tokenizer found"), ("*.safetensors", r"holds no \*\.safetensors or \*\.bin; give a folder")):
        for file in (tmp_path / "model").glob(part):
            file.unlink()
        with pytest.raises(ConfigError, match=message):
            rlft.train(rlft.load(write_run(), ["model=model"]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([""], "is empty; give at least one row"),
        (["not json", "[1]"], "none of its 2 rows is usable; correct them or the field names:\n.*row 1: not valid JSON"),
        ([ask("1" * 64), ask("1" * 99)], "every prompt is longer than the context: .*raise rollout.max_model_len or shorten the prompts"),
    ],
)
def test_data_without_one_usable_task_is_refused(write_run, rows, message):
    with pytest.raises(DataError, match=message):
        rlft.train(rlft.load(write_run(rows)))


def test_prompts_without_room_for_an_answer_are_set_aside_and_named(write_run, tmp_path):
    config = rlft.load(write_run([ask("1" * 63), ask("1" * 64)]))  # one token per character; one fits, one does not
    with pytest.raises(Started):
        rlft.train(config)
    (bad,) = map(json.loads, (tmp_path / config.run_dir / "quarantine.jsonl").read_text().splitlines())
    assert (bad["source"], bad["field"]) == ("task 2", "prompt") and "64 tokens leave no room in rollout.max_model_len 64" in bad["reason"]


OBJECTS = [
    ({"algorithm": grpo}, ConfigError, r"algorithm: expected an Algorithm such as grpo\(\) returns, got function"),
    ({"algorithm": "grpo"}, ConfigError, "algorithm: expected an Algorithm .*got str"),
    ({"env": 3}, ConfigError, "env: expected a class or function .*got int"),
    ({"env": lambda: None}, ConfigError, "env: too many positional arguments"),
    ({"reward": lambda task: 1.0}, ConfigError, "a reward is called as"),
    ({"reward": {3: 1.0}}, ConfigError, "3 is not a function"),
    ({"tasks": []}, DataError, "data: an empty list of tasks"),
    ({"eval_tasks": []}, DataError, "eval.data: an empty list of tasks"),
    ({"tasks": [{"prompt": "1+1=", "answer": "2"}]}, DataError, "data: expected a list of rlft.Task, got one with dict .*; make rlft.Task"),
    ({"tasks": [{}]}, DataError, "data: expected a list of rlft.Task, got one with dict"),
    ({"tasks": ["1+1="]}, DataError, "data: expected a list of rlft.Task, got one with str '1.1='; make rlft.Task"),
    ({"tasks": "tasks.jsonl"}, DataError, "data: expected a list of rlft.Task, got 'tasks.jsonl'; a file is named in data.source"),
    ({"eval_tasks": "tasks.jsonl"}, DataError, "a file is named in eval.data.source of the run file"),
]


@pytest.mark.parametrize(("objects", "error", "message"), OBJECTS, ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")
def test_a_wrong_object_is_refused_before_anything_starts(write_run, objects, error, message):
    with pytest.raises(error, match=message):
        rlft.train(rlft.load(write_run()), **objects)


@pytest.mark.parametrize("run", [rlft.train, rlft.sft, rlft.evaluate, rlft.dpo, rlft.train_rm], ids=lambda run: run.__name__)
@pytest.mark.parametrize(("given", "said"), [("a.toml", "'a.toml'; give rlft.load.'a.toml'"), ({"model": "m"}, "dict .*; give rlft.load")])
def test_a_run_file_is_loaded_before_it_is_run(run, given, said):
    with pytest.raises(ConfigError, match=f"config: expected what rlft.load returns, got {said}"):
        run(given)


def test_a_run_is_resumed_where_there_is_one_and_never_overwritten_with_it(write_run):
    config = rlft.load(write_run())
    with pytest.raises(ConfigError, match="holds no rlft run to resume; start it without --resume"):
        rlft.train(config, resume=True)
    with pytest.raises(ConfigError, match="ask for one of them"):
        rlft.train(config, resume=True, overwrite=True)
    for resume in (False, True):  # the second goes on in the folder of the first, which has no checkpoint
        with pytest.raises(Started):
            rlft.train(config, resume=resume)


def test_what_a_stage_cannot_do_is_told_with_its_number_before_anything_starts(write_run):
    def stages(second):
        return rlft.load(write_run(), [f"stages=[{{steps = 1}}, {second}]"])

    for second, message in (
        ("{steps = 1, critic = {lr = 1e-4}}", r"stages\[1\]: critic.lr needs an algorithm with a critic"),
        ("{steps = 1, algorithm = {name = 'grpo', clip_hihg = 0.3}}", r"stages\[1\]: algorithm.grpo: unknown option 'clip_hihg'"),
        ("{steps = 1, reference = 'stage'}", r"stages\[1\]: reference = 'stage' has no effect: algorithm 'grpo' needs no reference"),
        ("{steps = 1, rollout = {temperature = 0.0}}", r"stages\[1\]: rollout.temperature: training needs a temperature above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            rlft.train(stages(second))
    with pytest.raises(Started):
        rlft.train(stages("{steps = 1, rollout = {temperature = 0.5}}"))
    with pytest.raises(ConfigError, match=r"\[stages\] does not apply to supervised fine-tuning"):
        rlft.sft(rlft.load(write_run(), ["reward={}", "rollout={}", "stages=[{steps = 1}]"]))


def test_an_evaluation_needs_tasks_of_its_own(write_run):
    with pytest.raises(ConfigError, match="eval.data.source is not set: name the tasks"):
        rlft.evaluate(rlft.load(write_run()))
    with pytest.raises(Started):
        rlft.evaluate(rlft.load(write_run(), ["data.source=", "eval.data.source=tasks.jsonl"]))


def test_supervised_fine_tuning_refuses_what_it_does_not_use(write_run):
    with pytest.raises(ConfigError, match=r"\[reward\] does not apply to supervised fine-tuning; remove it"):
        rlft.sft(rlft.load(write_run(), ["rollout={}"]))


def test_supervised_fine_tuning_needs_answers(write_run):
    plain = ["reward={}", "rollout={}"]
    with pytest.raises(DataError, match="task 1 has no answer, the text to learn; name its field in data.answer"):
        rlft.sft(rlft.load(write_run(), [*plain, "data.answer="]))
    with pytest.raises(DataError, match="an empty list of tasks"):
        rlft.sft(rlft.load(write_run(), plain), tasks=[])
    with pytest.raises(Started):
        rlft.sft(rlft.load(write_run(), plain), tasks=[Task("t", ({"role": "user", "content": "1+1="},), "2")])


def told(capsys, monkeypatch, *arguments):
    """Exit status and what stands on stderr after a command."""
    monkeypatch.setattr(sys, "argv", ["rlft", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    return exit.value.code, capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "sft", "eval"])
def test_the_command_line_tells_an_error_in_one_line_and_fails(capsys, monkeypatch, write_run, command):
    run = str(write_run())
    assert told(capsys, monkeypatch, command, run, "--set", "stepz=3") == (1, "ConfigError: stepz: unknown key; did you mean 'steps'?\n")
    status, text = told(capsys, monkeypatch, command, "none.toml")
    assert status == 1 and text.startswith("ConfigError: no run file 'none.toml'; give") and text.count("\n") == 1


LIST_LOADED = """
import sys
from rlft.cli import main
try:
    main()
finally:
    print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "ray", "vllm", "deepspeed"}))
"""


@pytest.mark.parametrize(
    ("override", "error", "loaded"),
    [("stepz=3", "ConfigError: stepz: unknown key; did you mean 'steps'?\n", "[]\n"), ("model=./none", None, "[]\n")],
)
def test_an_error_waits_for_no_library_that_it_does_not_need(write_run, override, error, loaded):
    command = [sys.executable, "-c", LIST_LOADED, "train", str(write_run()), "--set", override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.splitlines(keepends=True)[-1]) == (1, loaded)
    assert done.stderr == error if error else done.stderr.startswith("ConfigError: model './none': no such folder")


@pytest.mark.slow
def test_making_a_model_prints_nothing(tmp_path):
    code = f"from rlft.recipes.starter import make_model; make_model({str(tmp_path / 'm')!r}, layers=1, width=32)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
