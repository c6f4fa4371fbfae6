"""The command line: rlft train | sft | dpo | train-rm | eval | check | serve-reward | submit | starter | demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlft.config import load
from rlft.errors import ConfigError, RlftError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RunFile = Annotated[str, typer.Argument(help="a TOML run file, or the name of a recipe")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a key: rollout.group_size=16")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default RAY_ADDRESS, else Ray on this machine")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the folder of an earlier run")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]
StarterModel = Literal["tiny", "smollm2"]


@app.command()
def train(
    run: RunFile,
    set: Set = None,
    address: Address = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the last checkpoint of an earlier run")] = False,
) -> None:
    """Reinforcement learning."""
    config = load(run, set or ())
    from rlft.runs import run as runs  # takes seconds: a wrong run file is told before

    runs.train(config, address=address, overwrite=overwrite, resume=resume)


@app.command()
def sft(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Supervised fine-tuning with the same learner, for warm starts."""
    config = load(run, set or ())
    from rlft.runs import run as runs  # takes seconds: a wrong run file is told before

    runs.sft(config, address=address, overwrite=overwrite)


@app.command()
def dpo(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Train a policy on preference pairs."""
    config = load(run, set or ())
    from rlft.runs import preferences  # takes seconds: a wrong run file is told before

    preferences.dpo(config, address=address, overwrite=overwrite)


@app.command("train-rm")
def train_rm(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Train a reward model on preference pairs."""
    config = load(run, set or ())
    from rlft.runs import reward_model  # takes seconds: a wrong run file is told before

    reward_model.train_rm(config, address=address, overwrite=overwrite)


@app.command("eval")
def evaluate(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Evaluate a model on the tasks of [eval.data]."""
    config = load(run, set or ())
    from rlft.runs import run as runs  # takes seconds: a wrong run file is told before

    runs.evaluate(config, address=address, overwrite=overwrite)


@app.command()
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
    config = load(run, set or ())
    import asyncio

    from rlft.runs.check import Plan
    from rlft.runs.check import check as sound

    if not asyncio.run(sound(config, Plan(samples, template, gold, seed, strict, scorers))):
        raise typer.Exit(1)


@app.command("serve-reward")
def serve_reward(
    reward: Annotated[str, typer.Argument(help="'module:function', a built-in reward, or a run file with its [reward]")],
    host: Annotated[str, typer.Option(help="address to listen on; other than this machine's own needs a token")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8010,
    token_env: Annotated[str, typer.Option(help="environment variable that holds the token")] = "",
    token_file: Annotated[Path | None, typer.Option(help="file that holds the token")] = None,
    processes: Annotated[int, typer.Option(min=1, help="grading processes")] = 1,
    timeout_s: Annotated[float, typer.Option(help="longest time of one call of a reward")] = 10.0,
    max_mb: Annotated[int, typer.Option(min=1, help="largest request")] = 64,
) -> None:
    """Serve a reward over HTTP, for runs whose [reward] has http_reward."""
    import asyncio

    from rlft.runs import serve_reward as server

    table = load(reward).reward if reward.endswith(".toml") else {reward: 1.0}
    token = server.read_token(token_env, token_file)
    listener = server.listen(host, port, token)
    asyncio.run(server.serve(table, listener, token, processes, timeout_s, max_mb * 2**20))


@app.command()
def submit(
    run: RunFile,
    address: Annotated[str, typer.Option(help="dashboard of the cluster: http://head:8265")],
    set: Set = None,
    overwrite: Overwrite = False,
    working_dir: Annotated[Path, typer.Option(help="folder that the job gets: run file, data, your modules")] = Path(),
    command: Annotated[str, typer.Option(help="which rlft command the job runs")] = "train",
) -> None:
    """Run the same file as a Ray job: follow its log and exit with its status."""
    from rlft.runs.submit import submit_job

    raise typer.Exit(submit_job(run, address, set or (), overwrite, working_dir, command))


@app.command()
def starter(
    model: Annotated[StarterModel, typer.Argument(help="tiny: made and warm-started here; smollm2: SmolLM2-135M-Instruct")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="folder for the model; default runs/starter or runs/smollm2")] = None,
    seed: Annotated[int, typer.Option(help="seed of the tiny model and its warm start")] = 0,
) -> None:
    """Make a model to start from: a small one, warm-started on noisy additions, or a real one out of a Python package."""
    if model == "smollm2" and seed:
        raise ConfigError(f"--seed {seed}: nothing about smollm2 is random; leave it out")
    print(f"starter policy: {_build(model, out or Path('runs/starter' if model == 'tiny' else 'runs/smollm2'), seed)}")


@app.command()
def demo(
    model: Annotated[StarterModel, typer.Option(help="tiny: a model made here, on additions; smollm2: a real one, on sentences")] = "tiny",
    seed: Seed = 0,
    set: Set = None,
) -> None:
    """Make a model to start from and train it with GRPO on tasks it has never seen."""
    from rlft.runs import run

    recipe, folder = ("demo", f"runs/starter-{seed}") if model == "tiny" else ("sentences", "runs/smollm2")
    made = _build(model, Path(folder), seed)
    seeded = [f"model={made}", f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}"]
    config = load(recipe, [*seeded, *(set or ())])
    run.train(config, overwrite=Path(config.run_dir).exists())


def _build(model: StarterModel, folder: Path, seed: int) -> Path:
    if model == "smollm2":
        from rlft.recipes.smollm2 import build_smollm2

        return build_smollm2(folder)
    from rlft.recipes.starter import build_starter

    return build_starter(folder, seed)


def main() -> None:
    """Entry point. Errors that rlft raises on purpose are one message, without a traceback."""
    try:
        app()
    except RlftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
