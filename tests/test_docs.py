"""The documentation is executed: its Python runs, its run files load, its commands, keys, names and links exist."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from pydantic import BaseModel

from rlft import Callback, Completion, Task, Trajectory, Turn
from rlft.actors.weights.transfer import choose_transfer
from rlft.algorithms import BUILTIN as ALGORITHMS
from rlft.algorithms.policy_gradient import DEFAULTS
from rlft.cli import app
from rlft.config import RunConfig, load, validate
from rlft.data import stored
from rlft.data.sources import load_tasks
from rlft.names import import_object
from rlft.recipes.addition import addition
from rlft.recipes.starter import make_model
from rlft.report import preferences as preference_report
from rlft.report.attempts import attempt_metrics
from rlft.report.evaluation import summarize
from rlft.report.metrics import rollout_metrics
from rlft.rewards.compose import BUILTIN as REWARDS
from rlft.rewards.compose import compose
from rlft.rollout.program import run_episode
from rlft.runs.first import make_algorithm, make_env_fn
from rlft.testing.checks import check_algorithm
from rlft.testing.fakes import CharRenderer
from rlft.types import GroupRef, TrajectoryInfo, TurnInfo

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "examples" / "additions"
OTHER_PAGES = ["AGENTS.md", "cluster/README.md"]  # nothing to execute, but commands and links
STARTS_A_RUN = ("rlft.train(", "rlft.sft(", "rlft.dpo(", "rlft.train_rm(", "rlft.evaluate(")


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def snippets(text, language):
    """(line number, code) of every fenced block of a language."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: match.start()].count("\n") + 2, match[1]) for match in found]


def prose(text):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def file_name(code):
    """What a snippet that begins with "# name.py" is to be saved as."""
    named = re.match(r"# (\w+)\.py\n", code)
    return named[1] if named else ""


def starts_a_run(code):
    return any(call in code for call in STARTS_A_RUN)


@contextmanager
def reader(text, folder):
    """A reader's folder: the page's files are saved and can be imported."""
    names = []
    before = os.getcwd()
    for line, code in snippets(text, "python"):
        if (name := file_name(code)) and not starts_a_run(code):
            (folder / f"{name}.py").write_text("\n" * (line - 1) + code)
            names.append(name)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)


def execute(text, folder):
    """Run a page's Python from top to bottom, but for what starts Ray."""
    with reader(text, folder):
        namespace = {"__name__": "page"}
        for line, code in snippets(text, "python"):
            if not file_name(code) and not starts_a_run(code):
                exec(compile("\n" * (line - 1) + code, "page", "exec"), namespace)


def leave_a_run(folder):
    """What `docs/looking.md` reads: a stored step of one episode."""
    said = [{"role": "user", "content": "2+2=", "other": None}, {"role": "assistant", "content": "5", "other": None}]
    empty = {name: [] if str(kind).startswith("list") else "" if str(kind) == "string" else 0 for name, kind in stored.COLUMNS.items()}
    episode = {**empty, "messages": said, "components": json.dumps({"exact_match": 0.0}), "status": "completed"}
    stored.write_part(folder / "runs/sums/rollouts" / stored.PARTS / "step-000040" / "0.parquet", [episode])
    stored.merge(folder / "runs/sums/rollouts", "step-000040")


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page, tmp_path):
    if page == "docs/looking.md":
        leave_a_run(tmp_path)
    execute(read(page), tmp_path)


def test_the_looking_page_tells_every_column_of_a_stored_episode_and_every_event_of_a_callback():
    page = read("docs/looking.md")
    rows = re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
    assert {name for cell in rows for name in re.findall(r"`(\w+)`", cell)} == set(stored.COLUMNS)
    called = set(re.findall(r"`((?:on_\w+|close)\([\w, ]*\))`", page))
    methods = {name: inspect.signature(method).parameters for name, method in vars(Callback).items() if name[:2] in ("on", "cl")}
    assert called == {f"{name}({', '.join(list(parameters)[1:])})" for name, parameters in methods.items()}


def test_python_that_fails_is_noticed(tmp_path):
    with pytest.raises(AssertionError):
        execute("```python\n# one.py\nx = 1\n```\n\n```python\nfrom one import x\n\nassert x == 2\n```\n", tmp_path)


def configs(page):
    """Every run file of a page, and the table it was written as; parts of one get a model."""
    return [validate({"model": "m", **tomllib.loads(code)}) for _, code in snippets(read(page), "toml")]


@pytest.mark.parametrize("page", PAGES)
def test_run_files_of_a_page_load_and_the_names_in_them_resolve(page, tmp_path):
    with reader(read(page), tmp_path):
        for config in configs(page):
            compose(config.reward)
            make_env_fn(config, None)
            make_algorithm(config, None)


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """The modules that the README has its reader write, by name."""
    with reader(read("README.md"), tmp_path_factory.mktemp("readme")) as modules:
        return {module.__name__: module for module in modules}


class Says:
    """A policy that says given lines."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def room(self, prompt_ids):
        return 100

    async def generate(self, prompt_ids):
        ids = [ord(char) for char in self.lines.pop(0)]
        return Completion(ids, [-1.0] * len(ids), "stop", 0)


@pytest.mark.parametrize(("lines", "outcome"), [(["240"], 1.0), (["241", "240"], 0.5), (["241", "042"], 0.0), (["", "240 "], 0.5)])
def test_the_environment_of_the_readme_gives_two_tries(readme, lines, outcome):
    task = Task("1", ({"role": "user", "content": "21+03="},), "240")
    played = asyncio.run(run_episode(task, readme["my_envs"].TwoTries(task), Says(*lines), CharRenderer(), max_turns=2))
    assert (played.outcome, played.status, len(played.turns)) == (outcome, "completed", len(lines))


@pytest.mark.parametrize(("characters", "value"), [(0, 1.0), (8, 1.0), (12, 0.5), (16, 0.0), (100, 0.0)])
def test_the_reward_of_the_readme_is_what_it_says(readme, characters, value):
    turn = Turn([0], Completion([1], [-1.0], "stop", 0), {"role": "assistant", "content": "x" * characters}, [0, 1])
    task = Task("1", ())
    assert readme["my_rewards"].brief(task, Trajectory(task, 0, (turn,), "completed"), budget=8) == value


def test_the_files_of_the_readme_are_those_of_the_examples():
    code = [code for language in ("python", "toml") for _, code in snippets(read("README.md"), language)]
    named = {re.match(r"# ([\w.]+)\n", text)[1]: text for text in code}
    assert {path.name for path in EXAMPLE.iterdir() if path.suffix in (".py", ".toml")} == set(named)
    assert {name: (EXAMPLE / name).read_text() for name in named} == named


def test_the_algorithm_of_the_readme_keeps_the_laws(readme):
    check_algorithm(readme["my_algorithm"].reinforce())


def test_rows_of_the_quickstart_are_tasks_as_the_starter_policy_knows_them(tmp_path, monkeypatch):
    page = read("docs/quickstart.md")
    (config,) = configs("docs/quickstart.md")
    monkeypatch.chdir(tmp_path)
    Path(config.data.source).write_text(snippets(page, "json")[0][1])
    loaded = load_tasks(config.data)
    assert not loaded.bad_rows
    assert [(task.messages[0]["content"], task.answer) for task in loaded.tasks] == [addition(12, 30), addition(5, 5)]


def test_the_cluster_page_counts_right():
    whole, shared = configs("docs/cluster.md")
    assert (choose_transfer(whole), choose_transfer(shared)) == ("nccl", "ipc")
    rollout, learner = whole.rollout, whole.learner
    gpus = rollout.num_workers * rollout.tensor_parallel_size * rollout.gpus + learner.num_ranks * learner.gpus
    cpus = rollout.num_workers * rollout.cpus + learner.num_ranks * learner.cpus + whole.reward_pool.num_workers
    assert f"This takes {gpus:g} GPUs and {cpus:g} CPUs." in read("docs/cluster.md")


def commands(text):
    """Every `make` and `rlft` command of a page, in bash blocks and between backticks, as words."""
    lines = [line for _, code in snippets(text, "bash") for line in code.splitlines()]
    lines += re.findall(r"`((?:make|rlft) [^`]+)`", prose(text))
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def problem_of(words, run_file):
    """What is wrong with a command; "" if nothing is."""
    name, *arguments = words
    if name == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        variables = set(re.findall(r"\b([A-Z]+)(?: \?=|\))", (ROOT / "Makefile").read_text()))
        asked = {word.partition("=")[0] for word in arguments}
        return "" if asked <= targets | variables else f"no target or variable {asked - targets - variables}"
    if name == "cd":
        return "" if (ROOT / arguments[0]).is_dir() else f"no folder {arguments[0]}"
    if words == ["source", ".venv/bin/activate"]:
        return ""
    if name != "rlft":
        return "not a command of this project"
    known = typer.main.get_command(app).commands
    if arguments[0] not in known:
        return f"no command {arguments[0]}"
    options = {opt for parameter in known[arguments[0]].params for opt in parameter.opts if opt.startswith("--")}
    if unknown := {word for word in arguments if word.startswith("--")} - options:
        return f"no option {unknown}"
    load(run_file, [value for option, value in zip(arguments, arguments[1:], strict=False) if option == "--set"])
    return ""


@pytest.mark.parametrize("page", PAGES + OTHER_PAGES)
def test_commands_of_a_page_exist(page, tmp_path):
    run_file = tmp_path / "run.toml"
    run_file.write_text('model = "m"')
    assert {" ".join(words): problem for words in commands(read(page)) if (problem := problem_of(words, run_file))} == {}


@pytest.mark.parametrize("line", ["make tea", "cd nowhere", "rlft brew run.toml", "rlft train run.toml --milk", "pip install rlft"])
def test_a_command_that_does_not_exist_is_noticed(line, tmp_path):
    assert problem_of(shlex.split(line), tmp_path / "run.toml")


def missing_paths(page):
    """Links that lead nowhere, and Python files named between backticks that are not there."""
    text = prose(read(page))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    files = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    lost = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    return lost + [file for file in files if not (ROOT / file).exists() and not (ROOT / "rlft" / file).exists()]


@pytest.mark.parametrize("page", PAGES + OTHER_PAGES)
def test_links_of_a_page_lead_somewhere(page):
    assert missing_paths(page) == []


def test_every_page_is_linked_from_another():
    linked = {Path(link).name for page in PAGES for link in re.findall(r"\]\(([^)#\s]+\.md)\)", read(page))}
    assert {Path(page).name for page in PAGES[1:]} <= linked


def keys(section=RunConfig, prefix=""):
    """Every key of the run file with its default as the page writes it; [eval.data] has the keys of [data]."""
    for name, field in section.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            if prefix != "eval.":
                yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = "required" if field.is_required() else "unset" if default is None else f"`{json.dumps(default)}`"
            yield f"{prefix}{name}", shown


SECTIONS = "|".join(name for name, field in RunConfig.model_fields.items() if hasattr(field.annotation, "model_fields"))
OPTIONS = {
    name
    for path in ALGORITHMS.values()
    for name, parameter in inspect.signature(import_object(path)).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD
}


def unknown_names(text):
    """Keys of the run file and commands between backticks that do not exist; of the table beside other libraries, in its last column."""
    before, heading, beside = text.partition("\n## If you know TRL")
    text = before + heading + re.sub(r"^\|.*(\|[^|\n]+\|)$", r"\1", beside, flags=re.MULTILINE)
    known = {key for key, _ in keys()} | {f"algorithm.{name}" for name in OPTIONS | DEFAULTS.keys() | {"name"}} | {"eval.data"}
    known |= {f"eval.data.{key.removeprefix('data.')}" for key in known if key.startswith("data.")}
    spans = re.findall(r"`([^`\n]+)`", prose(text))
    pattern = rf"(?<![\w./-])((?:{SECTIONS}|algorithm)(?:\.[a-z_]\w*)+)(?![\w(/.])"
    named = {key for span in spans for key in re.findall(pattern, span) if not key.endswith(".toml")}
    lost = {name for name in named - known if not name.startswith(("data.options.", "eval.data.options.", "env."))}
    for _, command, *words in (span.split() for span in spans if re.match(r"rlft [a-z-]+(?:$| )", span)):
        found = typer.main.get_command(app).commands.get(command)
        options = {opt for parameter in found.params for opt in parameter.opts} | {"--help"} if found else set()
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        lost |= {f"rlft {command} {option}" for option in given if option not in options} if found else {f"rlft {command}"}
    return lost


@pytest.mark.parametrize("page", PAGES + OTHER_PAGES)
def test_keys_and_commands_in_the_text_of_a_page_exist(page):
    assert unknown_names(read(page)) == set()


def test_names_that_do_not_exist_are_noticed():
    text = "Set `rollout.milk = 2`, `algorithm.sugar` or `learner.lr`, then `rlft brew` or `rlft train run.toml --tea`."
    assert unknown_names(text) == {"rollout.milk", "algorithm.sugar", "rlft brew", "rlft train --tea"}


def test_the_run_file_page_has_every_key_with_its_default_and_no_other():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.+) \|$", read("docs/run-file.md").partition("## `[algorithm]`")[0], re.MULTILINE)
    assert {key: default for key, default, _ in rows} == dict(keys())


def option(parameter):
    """An option as the page writes it."""
    if parameter.default is inspect.Parameter.empty:
        return f"`{parameter.name}` (required)"
    return f"`{parameter.name}` unset" if parameter.default is None else f"`{parameter.name} = {json.dumps(parameter.default)}`"


@pytest.mark.parametrize("name", REWARDS)
def test_the_page_has_every_option_of_a_built_in_reward(name):
    row = re.search(rf"^\| `{name}` \|.*$", read("docs/rewards.md"), re.MULTILINE)[0]
    parameters = inspect.signature(import_object(REWARDS[name])).parameters.values()
    written = {option(p) for p in parameters if p.kind is p.KEYWORD_ONLY} or {"none"}
    assert set(re.findall(r"`[^`]+`(?: unset| \(required\))?|none", row.rpartition(" | ")[2])) == written


def documented(heading):
    """Names in the first column of the tables under a heading of the metrics page."""
    section = read("docs/metrics.md").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {name for cell in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`([^`]+)`", cell)}


def is_documented(name, names):
    """Whether a name is there, or a pattern of it such as reward/<part>."""
    return any(re.fullmatch(r"[\w@/]+".join(map(re.escape, re.split(r"<\w+>", known))), name) for known in names)


STEP, TIMES, EVALUATION, SUMMARY, REWARD_MODEL, PREFERENCES = (
    documented(heading)
    for heading in (
        "A step",
        "Where a step's time went",
        "An evaluation",
        "summary.json",
        "Training a reward model",
        "Learning from preferences",
    )
)
AREAS = "reward|attempt|ungraded|rollout|loss|ratio|kl|mismatch|sft|grad|learner|policy|critic|control|publish|preference|nft|rise"
METRIC = rf"({AREAS})/\w+|time/\w+_s"


def constants():
    """Every string in the package that is named like a metric, and every span that the loop times."""
    found = set()
    for path in (ROOT / "rlft").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found |= {node.value for node in nodes if isinstance(node, ast.Constant) and re.fullmatch(METRIC, str(node.value))}
        calls = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "watch.span"]
        found |= {f"time/{ast.literal_eval(call.args[0])}_s" for call in calls}
    return found


def computed():
    """Names that the step's and the evaluation's statistics give."""
    tried = [
        TrajectoryInfo(task, "completed", 1.0, verdict, 1, 1, 0, (first, replace(first, parts=verdict, edit=0.5)))
        for task in ("right", "wrong")
        for verdict in ({"exact_match": 1.0}, {"exact_match": 0.0})
        for first in [TurnInfo("attempt", 1.0, {"exact_match": float(task == "right")}, 1, False)]
    ]
    ungraded = replace(tried[0], ungraded={"exact": "timeout"})
    step = rollout_metrics([GroupRef("g", (*tried, ungraded), None, 2)], 0)
    evaluated = {f"eval/{name}" for name in [*summarize({"t": [1.0] * 4}, (1, 4)), "greedy"]}
    evaluated |= {f"eval/{area}/{name}" for area in ("attempt", "attempt_greedy") for name in attempt_metrics(tried)}
    evaluated |= {f"eval/{name}" for name in preference_report.report(np.zeros((1, 2)), np.ones((1, 2))).figures()}
    worker = {"time/rollout_s", "time/reward_s", "time/store_s", "time/other_s"}  # named by rollout workers and the stopwatch
    return {*step, *evaluated, *worker}


def test_every_metric_that_the_code_names_is_documented():
    names = constants() | computed()
    assert {name for name in names if not is_documented(name, STEP | TIMES | EVALUATION | REWARD_MODEL | PREFERENCES)} == set()
    assert len(names) > 40 and not is_documented("kl/gone", STEP)


def test_every_documented_metric_is_named_in_the_code():
    named = constants() | computed()
    every = STEP | TIMES | EVALUATION | REWARD_MODEL | PREFERENCES
    lost = {name for name in every if not any(is_documented(other, {name}) for other in named)}
    assert lost == set()


RUN_FILE = """
steps = 2
tasks_per_step = 4
[env]
name = "my_envs:TwoTries"
[data]
source = "problems.jsonl"
prompt = "question"
[reward]
exact_match = 1.0
[algorithm]
name = "grpo"
kl_coef = 0.001
is_cap = 2.0
[rollout]
group_size = 4
max_tokens = 4
max_turns = 2
max_model_len = 64
max_num_seqs = 16
memory = 0.5
[learner]
max_tokens_per_micro_batch = 256
[eval]
samples = 2
pass_k = [1, 2]
greedy = true
max_tokens = 4
[eval.data]
source = "held_out.jsonl"
"""


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_run_of_the_readmes_files_records_only_what_is_documented(tmp_path):
    model = make_model(tmp_path / "model", layers=1, width=32)
    (tmp_path / "run.toml").write_text(f"model = {json.dumps(str(model))}\n{RUN_FILE}")
    (tmp_path / "held_out.jsonl").write_text("\n".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) for n in range(3)))
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs", "run.toml", "held_out.jsonl"))
    ran = subprocess.run([sys.executable, "-m", "rlft", "train", "run.toml"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-3000:]
    folder = tmp_path / "runs" / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    recorded = {name for row in rows for name in row} - {"step"}
    assert {name for name in recorded if not is_documented(name, STEP | TIMES | EVALUATION)} == set()
    lost = {name for name in STEP | TIMES | EVALUATION if not any(is_documented(other, {name}) for other in recorded)}
    # Other environments, moving options, algorithms with a critic, other algorithms.
    elsewhere = ("attempt/", "eval/attempt", "control/", "critic/", "nft/", "rise/")
    assert {name for name in lost if not name.startswith(elsewhere)} == {
        "sft/cross_entropy",
        "time/data_s",
        "ungraded/<part>/<cause>",
        "kl/held_back",
        "ratio/dual_clipped",
    }
    assert {key for key in json.loads((folder / "summary.json").read_text()) if not is_documented(key, SUMMARY)} == set()
    section = read("README.md").partition("## What a run leaves")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([a-z]+(?:\.[a-z]+)?)(?:/[*.a-z]*)?`", section))
    assert {path.name for path in folder.iterdir()} == named - {"quarantine.jsonl", "alarms.jsonl"}  # no row was bad, nothing looked wrong
