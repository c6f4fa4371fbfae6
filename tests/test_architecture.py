"""The shape of the code is tested like its behaviour: import directions, sizes, links and constructs that are not used here."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 70

# What each room may import from the package, beside itself. A room that stands later may import those before it only.
NOUNS = {"types", "errors", "elsewhere", "hub", "files", "overrides", "effects", "config", "names"}
HELPERS = {"chat", "algorithms", "sandbox", "rewards", "envs", "rollout", "learner", "data"}
MAY_IMPORT = {
    "types": set(),
    "errors": set(),
    "elsewhere": set(),
    "hub": {"errors"},
    "files": {"errors"},
    "overrides": {"errors"},
    "names": {"errors", "elsewhere"},
    "effects": {"errors"},
    "config": {"types", "errors", "elsewhere", "hub", "files", "overrides", "effects", "names"},
    "algorithms": {"types", "errors"},
    "sandbox": {"types", "errors"},
    "chat": {"types", "errors"},
    "rewards": NOUNS | {"sandbox", "chat"},
    "envs": {"types", "errors", "names", "sandbox"},
    "rollout": {"types", "errors", "files", "envs", "chat"},
    "learner": {"types", "errors", "config", "algorithms"},
    "data": NOUNS | {"chat", "rewards", "rollout"},
    "report": NOUNS | {"rollout", "data"},
    "actors": NOUNS | HELPERS,
    "testing": NOUNS | HELPERS | {"actors", "report"},
    "loop": NOUNS | HELPERS | {"actors", "report"},
    "runs": NOUNS | HELPERS | {"actors", "report", "loop"},
    "recipes": NOUNS | {"runs"},
    "cli": NOUNS | {"runs", "recipes", "report"},
    "__main__": {"cli", "runs"},  # of runs the guard, which loads nothing
}
NO_ROOM = "__init__"  # of the package itself

ENGINES = {"ray", "vllm", "deepspeed"}
WITHOUT_TORCH = ("chat", "sandbox", "rewards", "envs", "rollout", "data", "report", *sorted(NOUNS))
NOT_IN_ROOM = {room: ENGINES | {"torch"} for room in WITHOUT_TORCH}
LEARNED = "rewards/learned/"  # rewards that are models
ALGORITHMS_USE = sys.stdlib_module_names | {"torch", "rlft"}
RAY_ALSO_IN = {"runs/start.py", "runs/submit.py", "cli.py"}
# A grading process reads what the process that started it wrote; its own answers go back as JSON.
UNPICKLE_FROM_PARENT = {"rewards/serve.py", "rewards/zygote.py"}
SHIFT_STANDS_IN = "learner/policy.py"

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """One imported module; `at_import` when importing the file runs it, `typing_only` under TYPE_CHECKING."""

    module: str
    line: int
    at_import: bool
    typing_only: bool

    @property
    def top(self) -> str:
        return self.module.partition(".")[0]

    @property
    def room(self) -> str:
        """The room of rlft it reaches into, "" for other packages and for `rlft` itself."""
        return self.module.split(".")[1] if self.module.startswith("rlft.") else ""


@dataclass(frozen=True)
class File:
    path: str  # relative to rlft/, with forward slashes
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        return self.path.partition("/")[0].removesuffix(".py")

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree.body, at_import=True, typing_only=False))

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def calls(self) -> list[tuple[str, ast.Call]]:
        """Every call with the dotted name of what it calls."""
        return [(ast.unparse(node.func), node) for node in self.nodes if isinstance(node, ast.Call)]


def _imports(body: list[ast.stmt], at_import: bool, typing_only: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole module name instead of a relative import"
            names = [f"rlft.{alias.name}" for alias in node.names] if node.module == "rlft" else [node.module or ""]
            yield from (Import(name, node.lineno, at_import, typing_only) for name in names)
        typing_block = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        runs = at_import and not isinstance(node, FUNCTIONS)
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, [])
            yield from _imports(inner, runs, typing_only or (typing_block and field == "body"))


def import_directions(file: File) -> list[str]:
    problems = []
    for item in file.imports:
        if item.room in ("", file.room):
            continue
        if file.room != NO_ROOM and item.room not in MAY_IMPORT[file.room]:
            problems.append(f"line {item.line}: {file.room} must not import {item.module}")
    return problems


def packages_stay_in_their_rooms(file: File) -> list[str]:
    problems = []
    for item in file.imports:
        if item.typing_only:
            continue
        learned = item.top == "torch" and file.path.startswith(LEARNED)
        banned = item.top in NOT_IN_ROOM.get(file.room, ()) and not learned
        foreign = file.room == "algorithms" and item.top not in ALGORITHMS_USE
        engine = item.top in ENGINES and file.room != "actors" and not (item.top == "ray" and file.path in RAY_ALSO_IN)
        if banned or foreign or engine:
            problems.append(f"line {item.line}: {file.room} must not import {item.top}")
    return problems


def engines_load_when_used(file: File) -> list[str]:
    early = [item for item in file.imports if item.top in ENGINES and item.at_import and not item.typing_only]
    return [f"line {item.line}: import {item.top} inside the function that uses it" for item in early]


def shift_happens_once(file: File) -> list[str]:
    if file.path == SHIFT_STANDS_IN:
        return []
    shifts = [node for node in file.nodes if isinstance(node, ast.Subscript) and _is_shift(node.slice)]
    return [f"line {node.lineno}: {ast.unparse(node)}: the next-token shift stands in {SHIFT_STANDS_IN} alone" for node in shifts]


def _is_shift(index: ast.expr) -> bool:
    def edge(part: ast.expr) -> bool:
        return isinstance(part, ast.Slice) and ast.unparse(part).replace(" ", "") in ("1:", ":-1")

    return isinstance(index, ast.Tuple) and any(edge(part) for part in index.elts[1:])


def sizes(file: File) -> list[str]:
    problems = []
    lines = len(file.text.splitlines())
    if lines > MAX_FILE_LINES:
        problems.append(f"{lines} lines: a file over about 400 is two ideas")
    for node in file.nodes:
        if isinstance(node, FUNCTIONS):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                problems.append(f"line {node.lineno}: {node.name} has {length} lines: over about 60 it is two steps")
    return problems


def first_sentence(file: File) -> list[str]:
    return [] if ast.get_docstring(file.tree) or not file.text.strip() else ["open the file with one sentence that says what it holds"]


def calls_that_are_not_used_here(file: File) -> list[str]:
    unsafe = {
        "torch.load": "runs code from the file; use safetensors",
        "pickle.load": "runs code from the file",
        "pickle.loads": "runs code from the bytes",
        "cloudpickle.load": "runs code from the file",
        "cloudpickle.loads": "runs code from the bytes",
        "signal.alarm": "does not stop C code and works in the main thread only; use a killable process",
    }
    if file.path in UNPICKLE_FROM_PARENT:
        del unsafe["pickle.loads"]
    problems = [f"line {call.lineno}: {name}: {unsafe[name]}" for name, call in file.calls if name in unsafe]
    for name, call in file.calls:
        for keyword in call.keywords:
            if keyword.arg in ("shell", "trust_remote_code") and ast.unparse(keyword.value) == "True":
                problems.append(f"line {call.lineno}: {name}({keyword.arg}=True)")
    for node in file.nodes:
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "signal", "torch"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            problems += [f"line {node.lineno}: {name}: {unsafe[name]}" for name in names if name in unsafe]
    return problems


def waits_have_deadlines(file: File) -> list[str]:
    problems = []
    for name, call in file.calls:
        if name in ("ray.get", "ray.wait"):
            deadline = next((keyword.value for keyword in call.keywords if keyword.arg == "timeout"), None)
            if deadline is None or ast.unparse(deadline) == "None":
                problems.append(f"line {call.lineno}: {name} without a timeout")
    return problems


def errors_are_not_swallowed(file: File) -> list[str]:
    """A handler that does not even name its error neither passes nor returns a constant: the failure would look like a value."""
    problems = []
    for handler in file.nodes:
        if not isinstance(handler, ast.ExceptHandler):
            continue
        if all(isinstance(node, ast.Pass) for node in handler.body):
            problems.append(f"line {handler.lineno}: except: pass; use contextlib.suppress with the exact error, or let it rise")
        inner = [node for statement in handler.body for node in ast.walk(statement)]
        reported = any(isinstance(node, ast.Name) and node.id == handler.name for node in inner)
        if not reported and any(isinstance(node, ast.Return) and _is_constant(node.value) for node in inner):
            problems.append(f"line {handler.lineno}: except returns a constant")
    return problems


def _is_constant(value: ast.expr | None) -> bool:
    if value is None:
        return True
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def rooms_form_no_cycle(files: list[File]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for file in files:
        if file.path != "__init__.py":
            graph.setdefault(file.room, set()).update(item.room for item in file.imports if item.room not in ("", file.room))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return [f"rooms import each other in a circle: {' <- '.join(error.args[1])}"]
    return []


def loaded_by(module: str) -> set[str]:
    """Top-level packages in sys.modules after importing `module` in a new interpreter."""
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


CHECKS: list[Callable[[File], list[str]]] = [
    import_directions,
    packages_stay_in_their_rooms,
    engines_load_when_used,
    shift_happens_once,
    sizes,
    first_sentence,
    calls_that_are_not_used_here,
    waits_have_deadlines,
    errors_are_not_swallowed,
]


@pytest.fixture(scope="module")
def package() -> list[File]:
    paths = sorted((ROOT / "rlft").rglob("*.py"))
    files = [File(path.relative_to(ROOT / "rlft").as_posix(), path.read_text()) for path in paths]
    assert {"types.py", "errors.py", "config.py"} <= {file.path for file in files}
    return files


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_file_of_the_package_passes(check, package):
    problems = [f"rlft/{file.path}: {problem}" for file in package for problem in check(file)]
    assert not problems, "\n".join(problems)


def test_rooms_do_not_import_each_other_in_a_circle(package):
    assert rooms_form_no_cycle(package) == []


@pytest.mark.parametrize("module", ["rlft", "rlft.types", "rlft.errors", "rlft.config", "rlft.hub", "rlft.cli", "rlft.runs.first"])
def test_importing_the_nouns_and_the_first_checks_loads_neither_torch_nor_ray(module):
    assert loaded_by(module) & {"torch", "ray", "vllm", "deepspeed", "transformers"} == set()


@pytest.mark.parametrize("room", ["actors", "algorithms", "envs", "rewards"])
def test_top_level_links_point_into_the_package(room):
    assert os.readlink(ROOT / room) == f"rlft/{room}"
    assert (ROOT / room).is_dir()


LONG_FILE = '"""Long."""\n' + "x = 1\n" * MAX_FILE_LINES
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES

BAD = [
    (import_directions, "types.py", "import rlft.errors"),
    (import_directions, "config.py", "from rlft.learner.batching import collate"),
    (import_directions, "algorithms/kl.py", "from rlft.learner.batching import collate"),
    (import_directions, "rewards/math.py", "from rlft.envs.base import Env"),
    (import_directions, "envs/base.py", "def f():\n    from rlft import rollout"),
    (import_directions, "rollout/program.py", "from rlft.actors.engine import Engine"),
    (import_directions, "learner/batching.py", "if TYPE_CHECKING:\n    from rlft.actors.engine import Engine"),
    (import_directions, "actors/learner.py", "from rlft.loop import train"),
    (import_directions, "loop.py", "import rlft.runs.start"),
    (import_directions, "report/metrics.py", "from rlft.cli import app"),
    (import_directions, "rewards/math.py", "from rlft.runs.start import start"),
    (import_directions, "data/stream.py", "from rlft.report.metrics import spans"),
    (import_directions, "report/plots.py", "from rlft.runs.run import train"),
    (import_directions, "runs/run.py", "from rlft.cli import app"),
    (packages_stay_in_their_rooms, "algorithms/kl.py", "import numpy as np"),
    (packages_stay_in_their_rooms, "rewards/math.py", "def f():\n    import torch"),
    (packages_stay_in_their_rooms, "envs/base.py", "from ray import remote"),
    (packages_stay_in_their_rooms, "rollout/program.py", "from torch import Tensor"),
    (packages_stay_in_their_rooms, "loop.py", "def f():\n    import ray"),
    (packages_stay_in_their_rooms, "runs/start.py", "def f():\n    from vllm import LLM"),
    (engines_load_when_used, "actors/engine.py", "from vllm import LLM"),
    (engines_load_when_used, "actors/engine.py", "class Engine:\n    import vllm"),
    (engines_load_when_used, "runs/start.py", "try:\n    import ray\nfinally:\n    pass"),
    (shift_happens_once, "actors/learner.py", "y = x[:, 1:]"),
    (shift_happens_once, "algorithms/kl.py", "y = x[:, : -1]"),
    (shift_happens_once, "learner/batching.py", "y = x[..., 1:, :]"),
    (sizes, "loop.py", LONG_FILE),
    (sizes, "loop.py", LONG_FUNCTION),
    (sizes, "loop.py", "class A:\n    async " + LONG_FUNCTION.replace("\n", "\n    ")),
    (first_sentence, "loop.py", "x = 1"),
    (calls_that_are_not_used_here, "a.py", "torch.load('w.pt', weights_only=True)"),
    (calls_that_are_not_used_here, "a.py", "x = pickle.loads(data)"),
    (calls_that_are_not_used_here, "a.py", "from pickle import load"),
    (calls_that_are_not_used_here, "rewards/serve.py", "x = pickle.load(file)"),
    (calls_that_are_not_used_here, "a.py", "subprocess.run(command, shell=True)"),
    (calls_that_are_not_used_here, "a.py", "AutoModel.from_pretrained(path, trust_remote_code=True)"),
    (calls_that_are_not_used_here, "a.py", "signal.alarm(3)"),
    (waits_have_deadlines, "a.py", "ray.get(reference)"),
    (waits_have_deadlines, "a.py", "ray.get(references, timeout=None)"),
    (waits_have_deadlines, "a.py", "ray.wait(references, num_returns=1)"),
    (errors_are_not_swallowed, "a.py", "try:\n    f()\nexcept ValueError:\n    pass"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except Exception:\n        log()\n        return 0.0"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except KeyError:\n        return"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except KeyError:\n        return {}"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except KeyError as error:\n        return 0.0"),
]

GOOD = [
    (import_directions, "config.py", "from rlft.errors import ConfigError\nfrom rlft import types"),
    (import_directions, "rollout/program.py", "from rlft.envs.base import Env\nfrom rlft.rollout.renderer import Renderer"),
    (import_directions, "runs/start.py", "from rlft.loop import train\nfrom rlft.data.sources import tasks"),
    (packages_stay_in_their_rooms, "algorithms/kl.py", "import math\nimport torch"),
    (packages_stay_in_their_rooms, "types.py", "if TYPE_CHECKING:\n    from torch import Tensor"),
    (packages_stay_in_their_rooms, "cli.py", "def f():\n    from ray.job_submission import JobSubmissionClient"),
    (engines_load_when_used, "actors/engine.py", "class Engine:\n    def __init__(self):\n        from vllm import LLM"),
    (engines_load_when_used, "actors/engine.py", "if TYPE_CHECKING:\n    from vllm import SamplingParams"),
    (shift_happens_once, "learner/policy.py", "y = x[:, 1:]"),
    (shift_happens_once, "learner/batching.py", "y, z, w = x[:, :width], x[1:], x[:, -1]"),
    (sizes, "loop.py", LONG_FILE.removesuffix("x = 1\n")),
    (sizes, "loop.py", LONG_FUNCTION.removesuffix("    x = 1\n")),
    (calls_that_are_not_used_here, "a.py", "subprocess.run(command, shell=False)\nsafetensors.torch.load_file(path)\njson.loads(text)"),
    (waits_have_deadlines, "a.py", "ray.get(references, timeout=limit_s)"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except ToolError as error:\n        return f'error: {error}'"),
    (errors_are_not_swallowed, "a.py", "def f():\n    try:\n        g()\n    except OSError as e:\n        send(e)\n        return False"),
    (errors_are_not_swallowed, "a.py", "try:\n    g()\nexcept KeyError as error:\n    raise ConfigError('no such key') from error"),
]


@pytest.mark.parametrize(("check", "path", "text"), BAD)
def test_each_check_catches_a_bad_source(check, path, text):
    assert len(check(File(path, text))) == 1


@pytest.mark.parametrize(("check", "path", "text"), GOOD)
def test_each_check_lets_a_good_source_pass(check, path, text):
    assert check(File(path, text)) == []


def test_the_cycle_check_catches_a_circle_of_two_helpers():
    inner = "def f():\n    import rlft.data.sources"
    circle = [File("data/sources.py", "from rlft.report.metrics import count"), File("report/metrics.py", inner)]
    assert len(rooms_form_no_cycle(circle)) == 1


def test_the_check_of_loaded_packages_sees_torch_where_it_is_loaded():
    assert "torch" in loaded_by("rlft.learner.batching")
