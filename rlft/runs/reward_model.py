"""Training a reward model on preference pairs: what `rlft train-rm` runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, cast

import numpy as np

from rlft.actors.reward_model_learner import RewardModelLearner
from rlft.actors.reward_model_rank import RewardModelRank
from rlft.algorithms.preference import bradley_terry
from rlft.config import DataConfig, RunConfig
from rlft.data.disk import write_text
from rlft.data.preferences import EncodedPair, PairStream, Preference, encode_pairs, load_preferences
from rlft.data.sources import BadRow
from rlft.errors import DataError
from rlft.hub import check_model
from rlft.loop import learn
from rlft.report import preferences as preference_report
from rlft.report import summary
from rlft.report.callbacks import Callback
from rlft.report.folder import RunFolder
from rlft.report.preferences import PreferenceReport
from rlft.report.screen import Screen
from rlft.report.tracking import Tracker
from rlft.rewards.learned.models import Encoder, Source, load_config, load_encoder
from rlft.runs.applies import check_applies, check_evaluates
from rlft.runs.beginning import READING, bring_up, shown_ray
from rlft.runs.checkpoints import PROGRESS, writing
from rlft.runs.defaults import with_rates
from rlft.runs.first import check_run_dir
from rlft.runs.preflight import check_room, check_savable, num_saves, tell
from rlft.runs.start import start_ranks
from rlft.runs.stopping import note


@dataclass(frozen=True)
class _Held:
    """Held-out pairs, and what was found on them by step."""

    pairs: Sequence[EncodedPair]
    lengths: np.ndarray  # [P, 2]
    reports: dict[int, PreferenceReport]


def train_rm(
    config: RunConfig,
    *,
    pairs: Sequence[Preference] | None = None,
    eval_pairs: Sequence[Preference] | None = None,
    address: str | None = None,
    overwrite: bool = False,
    screen: Screen | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train a reward model to its end and return the summary that lies in the run folder.

    Loss -log sigmoid(chosen - rejected - margin). The checkpoint loads with AutoModelForSequenceClassification; logit 0 is the score.

    Args:
        config: a run file, from `rlft.load`; `tasks_per_step` counts pairs.
        pairs, eval_pairs: preferences to use instead of what the run file names.
        address: a Ray cluster to join; default RAY_ADDRESS, else Ray on this machine.
        overwrite: replace the folder of an earlier run.
        screen: shows the run; default a new one.
        callbacks: what else is to hear of steps, evaluations, checkpoints and alarms.

    Raises:
        ConfigError, DataError: before anything starts. NonFiniteError, StallError: the run stopped, and why.
    """
    config = with_rates(config, "train-rm")
    check_applies(config, "train-rm")
    check_evaluates(config, bool(config.eval.data.source) or eval_pairs is not None)
    check_run_dir(config.run_dir)
    check_model(config.model)
    screen, held = screen or Screen(), list[EncodedPair]()
    with screen.phase(READING):
        source = Source(config.model, chat_template=config.chat_template)
        encoder = load_encoder(source, load_config(source))
        train, bad = _load("data", config.data, config, pairs, encoder)
        if config.eval.data.source or eval_pairs is not None:
            held, bad_held = _load("eval.data", config.eval.data, config, eval_pairs, encoder)
            bad += bad_held
        check_savable(config.model, encoder.tokenizer)
    told = check_room(config, num_saves([config]), keeps_state=False)
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config, screen=screen, callbacks=callbacks) as tracker:
        tracker.quarantine(bad)
        tell(tracker, told)
        with shown_ray(screen, config, address, rollouts=False):
            lengths = np.array([pair.answer_tokens for pair in held]).reshape(-1, 2)
            return asyncio.run(_train(config, train, _Held(held, lengths, {}), source.chat_template, folder, tracker))


async def _train(
    config: RunConfig, pairs: Sequence[EncodedPair], held: _Held, chat_template: str, folder: RunFolder, tracker: Tracker
) -> dict[str, Any]:
    learner = RewardModelLearner(start_ranks(config, RewardModelRank, chat_template=chat_template), config.learner.timeout_s)
    tracker.learner(*await bring_up(tracker, {"learner": learner.ready()}))
    stream = PairStream(pairs, config.seed, config.data.shuffle)
    scores = np.zeros((0, 2))

    async def measure(step: int) -> None:
        nonlocal scores
        if held.pairs:
            with tracker.phase(f"evaluation {'before training' if step == 0 else f'after step {step}'}", tell=step == 0):
                scores = await learner.score(held.pairs)
            held.reports[step] = preference_report.report(scores, held.lengths)
            tracker.evaluation(step, held.reports[step].figures())

    async def after_step(step: int) -> None:
        last = step == config.steps
        if last or (config.eval.every and step % config.eval.every == 0):
            await measure(step)
        if last or (config.tracking.save_every and step % config.tracking.save_every == 0):
            target = folder.checkpoints.resolve() / f"step-{step:06d}"
            with tracker.phase(f"checkpoint {step}", tell=False), writing(target):
                await learner.save(target)
                write_text(target / PROGRESS, json.dumps({"step": step, "position": stream.position}))
            tracker.saved(step, folder.checkpoints / target.name)

    await measure(0)
    # The loop hands batches and the loss on to the learner without looking at them.
    await learn(cast(Any, _batches(stream, config)), cast(Any, learner), cast(Any, bradley_terry), tracker, config.steps, after_step)
    note(over=True)
    tracker.finish(summary.summarize_run(folder, config.steps) | _summary(held.reports, config.steps))
    summary.show_run(tracker.console, folder, {})
    if held.pairs:
        last = held.reports[config.steps]
        preference_report.show(tracker.console, last)
        preference_report.draw(last, scores, held.lengths, folder.plots / "preferences.png")
    return summary.read_summary(folder)


def _batches(stream: PairStream, config: RunConfig) -> Iterator[list[EncodedPair]]:
    while True:
        yield list(islice(stream, config.tasks_per_step))


def _summary(reports: Mapping[int, PreferenceReport], steps: int) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, step in (("start", 0), ("end", steps)):
        if step in reports:
            figures = reports[step].figures()
            summary[f"eval_{name}"] = figures.pop("mean")
            summary |= {f"eval_{name}_{key}": value for key, value in figures.items()}
    if steps in reports:
        summary["reliability"] = [asdict(b) for b in reports[steps].bins]
    return summary


def _load(
    where: str, data: DataConfig, config: RunConfig, pairs: Sequence[Preference] | None, encoder: Encoder
) -> tuple[list[EncodedPair], list[BadRow]]:
    try:
        loaded, bad = (pairs, ()) if pairs is not None else load_preferences(data, config.preferences)
        if not loaded:
            raise DataError("an empty list of pairs; give at least one")
        encoded, too_long = encode_pairs(loaded, encoder)
    except DataError as error:
        raise DataError(f"[{where}] {error}") from error
    return encoded, [*bad, *too_long]
