"""Mistakes that people make in their first half hour: what they type, and what they are told. Tests and a benchmark run them.

As a program, `mistakes.py FOLDER MODEL` makes every mistake that needs no torch and prints what came of each as JSON.
"""

# ruff: noqa: E501

from __future__ import annotations

import gzip
import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = "MODEL"  # stands for a good model's folder
RUN = f"""model = "{MODEL}"
[data]
source = "tasks.jsonl"
[rollout]
max_tokens = 8
max_model_len = 64
[reward]
exact_match = 1.0
"""
NO_REWARD = RUN.replace("[reward]\nexact_match = 1.0\n", "")
TASK = json.dumps({"prompt": "1+1=", "answer": "2"})
GOOD_REWARD = "def right(task, trajectory):\n    return 1.0\n"
RESULTS = {
    "runs/run/config.toml": f"# The resolved run file of an rlft run.\n{RUN}",
    "runs/run/metrics.jsonl": '{"step": 1}\n',
}


HELD_OUT = f'{RUN}[eval.data]\nsource = "tasks.jsonl"\n'
PAIRS = f'model = "{MODEL}"\n[data]\nsource = "pairs.jsonl"\n'
PAIR = json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "3"})
NO_STEP = """class Env:
    def __init__(self, task, turns=2):
        pass

    async def reset(self):
        return []
"""


@dataclass(frozen=True)
class Mistake:
    """One mistake, made in a folder with a good run file (run.toml), its data (tasks.jsonl) and a good reward (my_rewards.py)."""

    name: str
    arguments: Sequence[str]  # of `rlft`
    told: str  # regular expression; what is said must name what to do
    files: Mapping[str, str | bytes] = field(default_factory=dict)  # in place of the good ones, or beside them
    exit: int = 1
    torch: bool = False  # whether the answer may wait for torch
    env: Mapping[str, str] = field(default_factory=dict)


def of_set(name: str, override: str, told: str, command: str = "train", **options: Any) -> Mistake:
    return Mistake(name, [command, "run.toml", "--set", override], told, **options)


def of_reward(name: str, module: str, told: str) -> Mistake:
    return of_set(name, 'reward={"bad:right" = 1.0}', told, files={"bad.py": module})


NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": "no-cache"}

MISTAKES: Sequence[Mistake] = (
    # The run file.
    Mistake("no such run file", ["train", "none.toml"], r"no run file 'none.toml'; give a TOML file or one of the recipes \["),
    Mistake("not TOML", ["train", "run.toml"], r"not valid TOML: .*line 2", {"run.toml": 'model = "m"\nsteps = = 3\n'}),
    Mistake("no model in it", ["train", "run.toml"], "model: missing; every run file must set it", {"run.toml": "steps = 3\n"}),
    Mistake("a run file in Latin-1", ["train", "run.toml"], r"run.toml is no text in UTF-8 \(byte 0xe9 in line 2\): save it as UTF-8", {
        "run.toml": b'steps = 3\nmodel = "caf\xe9"\n'}),
    Mistake("a binary run file", ["train", "run.toml"], "run.toml is no text in UTF-8 .*it is binary; name a text file", {
        "run.toml": b"\x7fELF\x00\xff\x00"}),
    Mistake("a run file in UTF-16", ["train", "run.toml"], "it is UTF-16; save it as UTF-8", {"run.toml": 'model = "m"'.encode("utf-16")}),
    Mistake("a run file that cannot be read", ["train", "/proc/self/mem"], "/proc/self/mem cannot be read: .*; name another file"),
    Mistake("a run file in JSON", ["train", "run.json"], r"run.json: a run file is TOML, in a file that ends in .toml; write its keys", {
        "run.json": '{"model": "m"}'}),
    Mistake("a run file in YAML", ["train", "run.yaml"], "run.yaml: a run file is TOML, .*; write its keys as TOML", {"run.yaml": "model: m"}),
    Mistake("data for a run file", ["train", "tasks.jsonl"], 'a run file is TOML, .*: source = "tasks.jsonl" below'),
    Mistake("a script for a run file", ["train", "my_rewards.py"], "a run file is TOML, .*; start a script with `python my_rewards.py`"),
    Mistake("a folder for a run file", ["train", "."], "'.' is a folder; give the .toml file of a run: it holds run.toml"),
    Mistake("a folder without a run file", ["train", "here"], "'here' is a folder; .*: it holds none", {"here/file": ""}),
    of_set("a key mistyped", "stepz=3", r"stepz: unknown key; did you mean 'steps'\?"),
    of_set("a section mistyped", "rolout.group_size=4", r"rolout: unknown key; did you mean 'rollout'\?"),
    of_set("a key at the top that has a section", "group_size=4", r"group_size: unknown key: it belongs in \[rollout\], as rollout.group_size"),
    of_set("a key in a section that stands at the top", "learner.steps=4", "'steps' belongs at the top of the run file"),
    of_set("text for a number", "steps=many", "steps: input should be a valid integer, got 'many'"),
    of_set("a key in capitals", "learner.Lr=3", r"learner.Lr: unknown key; did you mean 'lr'\?"),
    of_set("an algorithm for its table", "algorithm=grpo", 'algorithm: expected a table, got .grpo.; write algorithm.name = "grpo" there, or --set algorithm.name=grpo'),
    of_set("an environment for its table", "env=single_turn", "or --set env.name=single_turn on the command line"),
    of_set("a file for its table", "data=tasks.jsonl", "or --set data.source=tasks.jsonl on the command line"),
    of_set("a reward for its table", "reward=exact_match", r"exact_match = 1.0 below \[reward\], or --set reward.exact_match=1.0 on"),
    of_set("no rewards", "reward=", r"exact_match = 1.0 below \[reward\]"),
    of_set("a list of rewards", 'reward=["exact_match", "bad:right"]', r'"bad:right" = 1.0 below \[reward\], or .* --set reward.bad:right=1.0 on'),
    of_set("a number for a section", "rollout=8", "rollout: expected a table, got 8; set keys of it, such as rollout.KEY = VALUE"),
    of_set("a number out of range", "learner.lr=-1.0", r"learner.lr: .*greater than 0, got -1.0"),
    of_set("an override without a value", "rollout.group_size", r"--set 'rollout.group_size': expected key=value, such as"),
    of_set("more passes than samples", "eval.pass_k=1,8", "eval.pass_k 8 needs at least as many eval.samples", files={"run.toml": HELD_OUT}),
    of_set("passes of none", "eval.pass_k=0", r"eval.pass_k\[0\]: .*greater than or equal to 1, got 0", files={"run.toml": HELD_OUT}),
    of_set("a part of the reward mistyped", "eval.metric=exact", r"eval.metric 'exact': no part of \[reward\] .*did you mean 'exact_match'\?", files={
        "run.toml": HELD_OUT}),
    of_set("a part of the reward that is another's", "eval.metric=f1", r"eval.metric 'f1': no part of \[reward\] .*valid: exact_match", files={
        "run.toml": HELD_OUT}),
    of_set("an evaluation of nothing", "eval.every=10", "eval.every needs eval.data.source"),
    of_set("an evaluation that never comes", "eval.every=200", "eval.every 200: the run ends after 100 steps; set it lower, or to 0", files={
        "run.toml": HELD_OUT}),
    of_set("a checkpoint that never comes", "tracking.save_every=200", "tracking.save_every 200: the run ends after 100 steps; set it lower, or to 0"),
    of_set("a rate that only rises", "learner.warmup_steps=100", "learner.warmup_steps 100: the run ends after 100 steps; set it lower"),
    of_set("the length of no evaluation's answers", "eval.max_tokens=8", "eval.max_tokens needs eval.data.source"),
    of_set("the metric of no evaluation", "eval.metric=exact_match", "eval.metric needs eval.data.source"),
    of_set("a split of a file", "data.split=test", "data.split applies to Hub names and folders only"),
    of_set("an endless number", "learner.lr=inf", "learner.lr: input should be a finite number, got inf"),
    of_set("an option without effect", "learner.lora_alpha=8.0", "learner.lora_alpha needs lora_rank > 0"),
    of_set("no room for a prompt", "rollout.max_tokens=64", "max_tokens 64 leaves no room for a prompt in max_model_len 64"),
    # What other libraries call it.
    of_set("TRL's num_generations", "num_generations=8", "num_generations: unknown key: here it is rollout.group_size"),
    of_set("TRL's learning_rate", "learner.learning_rate=1e-6", "learning_rate: unknown key: here it is learner.lr"),
    of_set("TRL's max_completion_length", "max_completion_length=64", "here it is rollout.max_tokens"),
    of_set("TRL's per_device_train_batch_size", "per_device_train_batch_size=4", "here it is learner.max_tokens_per_micro_batch"),
    of_set("TRL's beta", "algorithm.beta=0.04", "unknown option 'beta': here it is kl_coef in .algorithm.", torch=True, files={
        "run.toml": f'{RUN}[algorithm]\nname = "grpo"\n'}),
    of_set("TRL's epsilon", "algorithm.epsilon=0.2", "unknown option 'epsilon': here it is clip_low and clip_high", torch=True, files={
        "run.toml": f'{RUN}[algorithm]\nname = "grpo"\n'}),
    of_set("verl's actor_rollout_ref", "actor_rollout_ref.rollout.n=8", "actor_rollout_ref.rollout.n: here it is rollout.group_size"),
    of_set("verl's train_files", "data.train_files=tasks.jsonl", "data.train_files: unknown key: here it is data.source"),
    of_set("OpenRLHF's n_samples_per_prompt", "n_samples_per_prompt=8", "here it is rollout.group_size"),
    # The command line.
    Mistake("a key as an option", ["train", "run.toml", "--steps", "5"], "--steps. It is a key of the run file: --set steps=VALUE", exit=2),
    Mistake("a key typed alone", ["train", "run.toml", "steps=5"], r"\(steps=5\). Keys of the run file are set with --set steps=5", exit=2),
    Mistake("a key for a run file", ["train", "steps=5"], "no run file 'steps=5'; keys are set behind one: run.toml --set steps=5"),
    Mistake("a key before the run file", ["train", "lr=1e-5", "run.toml"], "Keys of the run file are set with --set learner.lr=1e-5", exit=2),
    Mistake("a key after --set and another", ["train", "run.toml", "--set", "seed=1", "steps=5"], "set with --set steps=5 *$", exit=2),
    Mistake("a blank for the sign", ["train", "run.toml", "--set", "steps", "5"], "Keys of the run file are set with --set steps=5", exit=2),
    Mistake("blanks around the sign", ["train", "run.toml", "--set", "steps", "=", "5"], "set with --set steps=5 *$", exit=2),
    Mistake("a blank before the value", ["train", "run.toml", "--set", "steps=", "5"], "set with --set steps=5 *$", exit=2),
    Mistake("two run files", ["train", "run.toml", "other.toml"], r"extra argument\(s\) \(other.toml\) *$", exit=2),
    Mistake("TRL's option", ["train", "run.toml", "--learning-rate", "5"], "--learning-rate: here it is learner.lr", exit=2),
    Mistake("an option mistyped", ["train", "run.toml", "--overwite"], r"No such option: --overwite \(Possible options: --overwrite", exit=2),
    Mistake("a command mistyped", ["trian", "run.toml"], "No such command 'trian'.*train", exit=2),
    Mistake("no run file given", ["train"], "Missing argument 'run'", exit=2),
    Mistake("resume and overwrite", ["train", "run.toml", "--resume", "--overwrite"], "ask for one of them"),
    Mistake("resume of nothing", ["train", "run.toml", "--resume"], "'runs/run' holds no rlft run to resume; start it without --resume"),
    Mistake("a dashboard to join", ["train", "run.toml", "--overwrite", "--address", "http://head:8265"],
            "--address http://head:8265: that is the dashboard, which takes jobs: use `rlft submit FILE --address http://head:8265`", RESULTS),
    Mistake("a dashboard to join, for pairs", ["dpo", "run.toml", "--address", "https://head"], "that is the dashboard.*joins .*, such as head:6379"),
    Mistake("a cluster without a port", ["train", "run.toml", "--address", "head"], "--address head: no port is named; give HOST:PORT, such as head:6379"),
    Mistake("a cluster without a port in the environment", ["eval", "run.toml"], "RAY_ADDRESS head: no port is named; give HOST:PORT, such as head:6379",
            env={"RAY_ADDRESS": "head"}),
    # The model.
    of_set("the starter was not made", "model=runs/starter", "model 'runs/starter': no such folder .*; `rlft starter` makes it"),
    of_set("a folder that is not there", "model=./nowhere", r"model './nowhere': no such folder \(looked in /.*\); give a folder"),
    of_set("a name without an owner", "model=nowhere", r"model 'nowhere': no such folder \(looked in /.*\); give .* or a Hub name"),
    of_set("a folder without a model", "model=here", "the folder holds no config.json; give", files={"here/file": ""}),
    of_set("a folder without weights", "model=here", r"holds no \*\.safetensors or \*\.bin; give", files={"here/config.json": "{}"}),
    of_set("a broken config.json", "model=here", "config.json.* not (a )?valid JSON", files={"here/config.json": "{", "here/a.bin": ""}),
    of_set("more context than positions", "rollout.max_model_len=4096", "has 1024 positions; set at most that, or 0"),
    of_set("no Hub", "model=owner/name", "Hub http://127.0.0.1:9 cannot be reached: .*; give a folder, or", env=NO_HUB),
    of_set("no Hub, and told so", "model=owner/name", "while HF_HUB_OFFLINE keeps from asking the Hub: unset it", env={
        **NO_HUB, "HF_HUB_OFFLINE": "1"}),
    of_set("no such template", "chat_template=none.jinja", r"chat_template: no file 'none.jinja' \(looked in /"),
    of_set("a binary template", "chat_template=t.jinja", "chat_template: 't.jinja' is no text in UTF-8 .*binary", files={"t.jinja": b"\x00\xff"}),
    of_set("a config.json that is no text", "model=here", "model 'here': '.*config.json' is no text in UTF-8", files={
        "here/config.json": b"\xff{}", "here/a.bin": ""}),
    of_set("a template with an open block", "chat_template=t.jinja", r"chat_template 't.jinja': no Jinja template: line 2: .*correct it there", files={
        "t.jinja": "{{ 1 }}\n{% for m in %}"}),
    of_set("a template that never ends", "chat_template=t.jinja", "chat_template 't.jinja': no Jinja template: line 1: Unexpected end", files={
        "t.jinja": "{% generation %}{% for m in messages %}"}),
    # The data.
    of_set("no data", "data.source=", "data.source is not set; give a .jsonl"),
    of_set("no such file", "data.source=none.jsonl", r"\[data\] .*no such file \(looked in /.*\); check the path"),
    of_set("no such folder", "data.source=data/none", r"expected a .jsonl, .json, .parquet, .csv or .tsv file", files={"data/x": ""}),
    of_set("a file of another kind", "data.source=tasks.txt", "expected a file that ends in .jsonl", files={"tasks.txt": "1+1=2"}),
    of_set("a file of another kind, not there", "data.source=tasks.xlsx", "no such file or folder .*; expected a .jsonl"),
    of_set("a folder with a file's name", "data.source=t.jsonl", r"data.source 't.jsonl' is a folder: .* as 't.jsonl/\*.jsonl'", files={"t.jsonl/a": ""}),
    of_set("an address of data", "data.source=https://example.org/t.jsonl", "is no path on this machine: download the file and give its path, or"),
    of_set("the address of a data set", "data.source=https://huggingface.co/datasets/openai/gsm8k", "or give the data set's Hub name, 'openai/gsm8k'"),
    of_set("half a packed file", "data.source=t.jsonl.gz", "t.jsonl.gz: not a whole gzip file: .*; unpack it with gunzip", files={
        "t.jsonl.gz": gzip.compress(TASK.encode())[:-8]}),
    of_set("no packed file", "data.source=t.jsonl.gz", "t.jsonl.gz: not a whole gzip file: Not a gzipped file", files={"t.jsonl.gz": TASK}),
    of_set("no such data set", "data.source=owner/name", "Hub http://127.0.0.1:9 cannot be reached", env=NO_HUB),
    of_set("a prompt's field mistyped", "data.prompt=promt", "no row has the field 'promt' that data.prompt names; did you mean 'prompt'"),
    of_set("an answer's field is another", "data.answer=solution", "no row has the field 'solution'.*available: 'answer', 'prompt'"),
    of_set("no such held-out file", "eval.data.source=none.jsonl", r"\[eval.data\] .*no such file"),
    Mistake("an empty file", ["train", "run.toml"], "is empty; give at least one row", {"tasks.jsonl": ""}),
    Mistake("not one row", ["train", "run.toml"], "none of its 2 rows is usable; correct them or", {"tasks.jsonl": "not json\n[1]\n"}),
    of_set("lines in a .json file", "data.source=t.json", "for one object a line name the file .jsonl", files={"t.json": f"{TASK}\n{TASK}\n"}),
    of_set("a CSV file without names", "data.source=t.csv", "expected a first line with a name for each column", files={"t.csv": "a,a\n1,2\n"}),
    of_set("a CSV file with other names", "data.source=t.csv", "no row has the field 'prompt'.*available: 'answer', 'question'", files={
        "t.csv": "question,answer\n1+1=,2\n"}),
    of_set("a function of data mistyped", "data.source=my_data:row", r"cannot import 'my_data:row'.*did you mean 'rows'\?", files={
        "my_data.py": "def rows():\n    return []\n"}),
    Mistake("data beside the run file", ["train", "deep/run.toml", "--set", "data.source=t.jsonl"],
            r"data.source: no 't.jsonl' in /.*; there is one beside the run file: start rlft in /.*deep, or write 'deep/t.jsonl'",
            {"deep/run.toml": RUN, "deep/t.jsonl": TASK}),
    Mistake("a module beside the run file", ["train", "deep/run.toml"],
            r"no 'deep_rewards.py' in /.*; there is one beside the run file: start rlft in /.*deep",
            {"deep/run.toml": f'{NO_REWARD}[reward]\n"deep_rewards:right" = 1.0\n', "deep/deep_rewards.py": GOOD_REWARD}),
    # Rewards.
    Mistake("no reward", ["train", "run.toml"], r"\[reward\] is empty .*; name a reward", {"run.toml": NO_REWARD}),
    of_set("a reward mistyped", "reward.exact_mach=1.0", "unknown name 'exact_mach'; did you mean 'exact_match'"),
    of_set("a reward's option mistyped", "reward.exact_match={weigth = 1.0}", "unknown option 'weigth'"),
    of_set("text for a weight", "reward.exact_match=much", "weight 'much'; expected a finite number"),
    of_set("a module mistyped", 'reward={"my_reward:right" = 1.0}', r"No module named 'my_reward' \(looked in /.*did you mean 'my_rewards'\?"),
    of_set("a module that is not there", 'reward={"other:right" = 1.0}', "No module named 'other' .*start rlft in the folder of other.py"),
    of_set("a function mistyped", 'reward={"my_rewards:rigth" = 1.0}', r"cannot import 'my_rewards:rigth'.*did you mean 'right'\?"),
    of_set("a dot for a colon", 'reward={"my_rewards.right" = 1.0}', "written with a colon: 'my_rewards:right'"),
    of_set("a module for a function", "algorithm.name=my_rewards", "written with a colon: 'my_rewards:FUNCTION'"),
    of_set("a file for a module", 'reward={"my_rewards.py:right" = 1.0}', "a module is written without .py: 'my_rewards:right'"),
    of_reward("a syntax error", "def right(task, trajectory):\n    retrun 1.0\n", r"SyntaxError: .*\(bad.py, line 2: retrun 1.0\)"),
    of_reward("an error at import", "x = 1\n1 / 0\n", r"ZeroDivisionError: division by zero \(bad.py, line 2\)"),
    of_reward("a library that is not installed", "import no_such_library\n", r"No module named 'no_such_library' \(bad.py, line 1\)"),
    of_reward("a script", "import sys\nsys.exit(3)\n", r"SystemExit: 3 \(bad.py, line 2\)"),
    of_reward("TRL's signature", "def right(completions, **kwargs):\n    return []\n", "a reward of TRL; write .* fn = 'trl_reward'"),
    of_reward("TRL's signature with prompts", "def right(prompts, completions, **kwargs):\n    return []\n", "fn = 'trl_reward'"),
    of_reward("verl's signature", "def right(data_source, solution_str, ground_truth, extra_info=None):\n    return 1\n", "fn = 'verl_reward'"),
    of_reward("another signature", "def right(answer):\n    return 1.0\n", r"a reward is called as \(task, trajectory"),
    # Environments and algorithms.
    of_set("an environment mistyped", "env.name=single_trun", "env: unknown name 'single_trun'; did you mean 'single_turn'"),
    of_set("an environment's option", "env={name = 'single_turn', turns = 3}", "env.single_turn: unknown option 'turns'"),
    of_set("an environment's module", "env.name=no_module:Env", "cannot import 'no_module:Env'"),
    of_set("an environment without a method", "env={name = 'my_env:Env', turns = 3}", "env 'my_env:Env': the class has no method step and no close; an", files={
        "my_env.py": NO_STEP}),
    of_set("an algorithm mistyped", "algorithm.name=gpro", r"unknown name 'gpro'; did you mean 'grpo', 'gspo' or 'hgpo'\?"),
    of_set("an algorithm without a name", "algorithm={clip_high = 0.3}", "algorithm.name is missing; valid: .*grpo"),
    of_set("an algorithm with a syntax error", "algorithm.name=bad:mine", r"SyntaxError: .*\(bad.py, line 1", files={"bad.py": "def mine(:\n"}),
    of_set("an algorithm's option", "algorithm={name = 'grpo', clip_hi = 0.3}", "unknown option 'clip_hi'; did you mean 'clip_high'", torch=True),
    of_set("greedy training", "rollout.temperature=0.0", "training needs a temperature above 0"),
    of_set("groups of one", "rollout.group_size=1", "fewer than 2 teach nothing: raise it", torch=True),
    of_set("a later stage's reward mistyped", "stages=[{steps = 1}, {steps = 1, reward = {exact_mach = 1.0}}]", r"stages\[1\]: .*'exact_mach'; did"),
    of_set("a later stage's algorithm mistyped", "stages=[{steps = 1}, {steps = 1, algorithm = {name = 'grp'}}]", r"stages\[1\]: .*did you mean 'grpo'"),
    # The run's folder.
    Mistake("results are there", ["train", "run.toml"], r"'runs/run' holds the results of a run; choose another .*--overwrite.*--resume", RESULTS),
    of_set("a folder of other things", "run_dir=here", "holds no rlft run and is never overwritten; choose another", files={"here/thesis": "x"}),
    of_set("a file on the way", "run_dir=tasks.jsonl/run", "'tasks.jsonl/run' cannot be written: Not a directory; choose another"),
    of_set("a folder that cannot be", "run_dir=/proc/run", "run_dir '/proc/run' cannot be written: .*; choose another"),
    # Other commands.
    Mistake("a reward in sft", ["sft", "run.toml"], r"\[reward\] does not apply to supervised fine-tuning; remove it", {
        "run.toml": f'model = "{MODEL}"\n[data]\nsource = "tasks.jsonl"\n[reward]\nexact_match = 1.0\n'}),
    Mistake("an evaluation without tasks", ["eval", "run.toml"], "eval.data.source is not set: name the tasks to evaluate on"),
    Mistake("a check without a reward", ["check", "run.toml"], r"\[reward\] is empty", {"run.toml": NO_REWARD}),
    Mistake("one run to compare", ["compare", "runs/run"], "give two or more: rlft compare runs/run runs/other", RESULTS, exit=2),
    Mistake("nothing to draw", ["compare", "runs/run", "runs/run", "--plot", "x.png"], "nothing to draw: leave the plot out", RESULTS),
    Mistake("a broken line of metrics", ["compare", "runs/run", "runs/run"], "metrics.jsonl, line 2: not valid JSON: .*; restore it, or", {
        **RESULTS, "runs/run/metrics.jsonl": '{"step": 1}\n{"step"\n'}),
    Mistake("a broken summary", ["compare", "runs/run", "runs/run"], "summary.json, line 1: not valid JSON", {**RESULTS, "runs/run/summary.json": "{"}),
    Mistake("a broken config.toml", ["compare", "runs/run", "runs/run"], "config.toml: not valid TOML: .*; restore it", {
        **RESULTS, "runs/run/config.toml": "model ="}),
    Mistake("a broken Parquet file", ["show", "runs/run"], "step-000001.parquet: not a readable Parquet file: .*; show another with --step", {
        **RESULTS, "runs/run/rollouts/step-000001.parquet": "nonsense"}),
    Mistake("the run file to show", ["show", "run.toml"], "'run.toml' is a run file, and no folder of a run; its run lies in 'runs/run'", RESULTS),
    Mistake("a run file that was not run", ["show", "run.toml"], "it has not been run: 'runs/run' holds no run"),
    Mistake("all runs to show", ["show", "runs"], "'runs' is no run, and holds runs; give the folder of one: runs/a, runs/run", {
        **RESULTS, "runs/a/config.toml": ""}),
    Mistake("the folder above all runs to show", ["show", "."], "'.' is no run, and holds runs; give the folder of one: runs/run", RESULTS),
    Mistake("a reward's run file in YAML", ["serve-reward", "run.yaml"], "run.yaml: a run file is TOML"),
    Mistake("a folder inside a run", ["show", "runs/run/checkpoints"], "it belongs to the run '/.*/runs/run': give that folder", {
        **RESULTS, "runs/run/checkpoints/x": ""}),
    Mistake("a run mistyped", ["show", "runs/rum"], "no run in 'runs/rum'; give the folder of one", RESULTS),
    Mistake("a port that is none", ["serve-reward", "exact_match", "--port", "99999"], r"--port.*less than or equal to 65535", exit=2),
    Mistake("dpo with grpo's name", ["dpo", "run.toml"], "algorithm.name: expected one of dpo, ipo, kto", {"run.toml": PAIRS, "pairs.jsonl": PAIR}),
    Mistake("dpo with options for samples", ["dpo", "run.toml", "--set", "algorithm={name = 'dpo', pairs = 'ranked'}"],
            "algorithm.pairs does not apply to given pairs; remove it", {"run.toml": PAIRS, "pairs.jsonl": PAIR}),
    Mistake("dpo of a run file of train", ["dpo", "run.toml"], r"\[reward\] does not apply to training on given pairs; remove it, or use `rlft train`"),
    Mistake("train-rm of a run file of train", ["train-rm", "run.toml"], r"\[reward\] does not apply to training a reward model; remove it"),
    Mistake("train-rm with an answer", ["train-rm", "run.toml", "--set", "data.answer=gold"], "data.answer does not apply to preference pairs; name", {
        "run.toml": PAIRS, "pairs.jsonl": PAIR}),
)


def lay(folder: Path, mistake: Mistake, model: str) -> None:
    """Put what a mistake needs into a folder."""
    for name, text in {"run.toml": RUN, "tasks.jsonl": TASK, "my_rewards.py": GOOD_REWARD, **mistake.files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.replace(MODEL, model).encode())


def left(folder: Path) -> list[str]:
    """What lies in a folder, but for compiled modules."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def make_all(top: Path, model: str) -> list[dict[str, Any]]:
    """Make every mistake that needs no torch, each in a fork of this process, which has not loaded it."""
    import psutil

    from rlft import cli

    importlib.import_module("rlft.runs.first")  # once for all
    found = []
    for number, mistake in enumerate(mistake for mistake in MISTAKES if not mistake.torch):
        folder = top / str(number)
        folder.mkdir()
        lay(folder, mistake, model)
        before, said = left(folder), top / f"{number}.said"
        if (child := os.fork()) == 0:
            code = 70
            try:
                os.chdir(folder)
                os.environ.update(mistake.env)
                sys.argv = ["rlft", *mistake.arguments]
                os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
                cli.main()
            except SystemExit as done:
                code = int(done.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code + (100 if "torch" in sys.modules else 0))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        running = [process.pid for process in psutil.Process().children(recursive=True)]
        found.append({
            "name": mistake.name, "exit": status % 100, "torch": status >= 100, "said": said.read_text(),
            "added": sorted(set(left(folder)) - set(before)), "running": running,
        })  # fmt: skip
    return found


if __name__ == "__main__":
    print(json.dumps(make_all(Path(sys.argv[1]), sys.argv[2])))
