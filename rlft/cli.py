"""The command line: rlft train | sft | eval | submit | starter | demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rlft.config import load
from rlft.errors import RlftError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

RunFile = Annotated[str, typer.Argument(help="a TOML run file, or the name of a recipe")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override a key: rollout.group_size=16")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join; default RAY_ADDRESS, else Ray on this machine")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the folder of an earlier run")]
Seed = Annotated[int, typer.Option(help="seed of everything random")]


@app.command()
def train(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Reinforcement learning."""
    config = load(run, set or ())
    from rlft import runs  # takes seconds: a wrong run file is told before

    runs.train(config, address=address, overwrite=overwrite)


@app.command()
def sft(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Supervised fine-tuning with the same learner, for warm starts."""
    config = load(run, set or ())
    from rlft import runs  # takes seconds: a wrong run file is told before

    runs.sft(config, address=address, overwrite=overwrite)


@app.command("eval")
def evaluate(run: RunFile, set: Set = None, address: Address = None, overwrite: Overwrite = False) -> None:
    """Evaluate a model on the tasks of [eval.data]."""
    config = load(run, set or ())
    from rlft import runs  # takes seconds: a wrong run file is told before

    runs.evaluate(config, address=address, overwrite=overwrite)


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
    from rlft.submit import submit_job

    raise typer.Exit(submit_job(run, address, set or (), overwrite, working_dir, command))


@app.command()
def starter(out: Annotated[Path, typer.Option(help="folder for the model")] = Path("runs/starter"), seed: Seed = 0) -> None:
    """Make the starter policy: a small model, warm-started on noisy additions."""
    from rlft.starter import build_starter

    print(f"starter policy: {build_starter(out, seed)}")


@app.command()
def demo(seed: Seed = 0, set: Set = None) -> None:
    """Make the starter policy and train it with GRPO on additions it has never seen."""
    from rlft import runs
    from rlft.starter import build_starter

    model = build_starter(Path(f"runs/starter-{seed}"), seed)
    seeded = [f"model={model}", f"seed={seed}", f"data.options.seed={seed}", f"eval.data.options.seed={seed}"]
    config = load("demo", [*seeded, *(set or ())])
    runs.train(config, overwrite=Path(config.run_dir).exists())


def main() -> None:
    """Entry point. Errors that rlft raises on purpose are one message, without a traceback."""
    try:
        app()
    except RlftError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
