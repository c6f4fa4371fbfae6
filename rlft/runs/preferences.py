"""Training a policy on preference pairs that lie in a file: what `rlft dpo` runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from rlft.algorithms.base import Algorithm
from rlft.config import RunConfig
from rlft.data.disk import write_text
from rlft.data.preferences import PairStream, Preference, TokenPair, load_preferences, tokenize_pairs
from rlft.data.sources import BadRow
from rlft.errors import ConfigError, DataError
from rlft.hub import check_model
from rlft.learner.batching import assign
from rlft.learner.rows import Row, demonstration_row, pack_rows
from rlft.loop import learn
from rlft.report import summary
from rlft.report.callbacks import Callback
from rlft.report.folder import RunFolder
from rlft.report.screen import Screen
from rlft.report.tracking import Tracker
from rlft.rewards.learned.models import Source, load_config, load_encoder
from rlft.rollout.renderer import load_renderer
from rlft.runs.applies import check_applies
from rlft.runs.beginning import READING, bring_up, shown_ray
from rlft.runs.checkpoints import PROGRESS, writing
from rlft.runs.defaults import with_rates
from rlft.runs.first import check_run_dir, make_algorithm
from rlft.runs.preflight import look_ahead, num_saves, tell
from rlft.runs.start import put, start_learner
from rlft.runs.stopping import note
from rlft.types import GroupRef

OFFERED = frozenset({"old_logprobs", "ref_logprobs"})


def dpo(
    config: RunConfig,
    *,
    pairs: Sequence[Preference] | None = None,
    address: str | None = None,
    overwrite: bool = False,
    screen: Screen | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train a policy on preference pairs to the end of the run and return the summary that lies in its folder.

    `[algorithm]` names dpo, ipo, kto or one of your own. A pair is a group of two trajectories, whose chosen one earned
    1, or its margin where the pairs have margins, and the other 0. The reference is the initial model.

    Args:
        config: a run file, from `rlft.load`; `tasks_per_step` counts pairs.
        pairs: preferences to use instead of what the run file names.
        address: a Ray cluster to join; default RAY_ADDRESS, else Ray on this machine.
        overwrite: replace the folder of an earlier run.
        screen: shows the run; default a new one.
        callbacks: what else is to hear of steps, evaluations, checkpoints and alarms.

    Raises:
        ConfigError, DataError: before anything starts. NonFiniteError, StallError: the run stopped, and why.
    """
    config = with_rates(config, "dpo")
    algorithm = _algorithm(config)
    check_run_dir(config.run_dir)
    check_model(config.model)
    screen = screen or Screen()
    with screen.phase(READING):
        tokens, bad_rows = _load(config, pairs)
        told = look_ahead(config, load_renderer(config.model, config.chat_template), num_saves([config]))
    folder = RunFolder.create(config.run_dir, config, overwrite)
    with Tracker(folder, config, screen=screen, callbacks=callbacks) as tracker:
        tracker.quarantine(bad_rows)
        tell(tracker, told)
        with shown_ray(screen, config, address, rollouts=False):
            return asyncio.run(_train(config, algorithm, tokens, folder, tracker))


async def _train(
    config: RunConfig, algorithm: Algorithm, pairs: Sequence[TokenPair], folder: RunFolder, tracker: Tracker
) -> dict[str, Any]:
    learner = start_learner(config, algorithm, None, folder.path.resolve())
    tracker.learner(*await bring_up(tracker, {"learner": learner.ready()}))
    stream = PairStream(pairs, config.seed, config.data.shuffle)

    async def after_step(step: int) -> None:
        if step == config.steps or (config.tracking.save_every and step % config.tracking.save_every == 0):
            target = folder.checkpoints.resolve() / f"step-{step:06d}"
            with tracker.phase(f"checkpoint {step}", tell=False), writing(target):
                await learner.save(target)
                write_text(target / PROGRESS, json.dumps({"step": step, "position": stream.position}))
            tracker.saved(step, folder.checkpoints / target.name)

    await learn(_batches(stream, config), learner, algorithm, tracker, config.steps, after_step)
    note(over=True)
    tracker.finish(summary.summarize_run(folder, config.steps))
    summary.show_run(tracker.console, folder, {})
    return summary.read_summary(folder)


def _batches(stream: PairStream[TokenPair], config: RunConfig) -> Iterator[list[GroupRef]]:
    """Endless batches of `tasks_per_step` pairs, one payload per learner rank."""
    while True:
        groups = [pair_rows(pair, f"pair {number}") for number, pair in enumerate(islice(stream, config.tasks_per_step))]
        shares = assign([sum(map(len, rows)) for rows in groups], config.learner.num_ranks)
        payloads = [[row for i in share for row in groups[i]] for share in shares]
        yield [GroupRef(f"share {n}", (), put(pack_rows(rows)), sum(map(len, rows))) for n, rows in enumerate(payloads) if rows]


def pair_rows(pair: TokenPair, group_id: str) -> list[Row]:
    """A pair as a group of two trajectories, the chosen one first and `gap` ahead in reward."""
    sides = ((pair.chosen_ids, pair.gap), (pair.rejected_ids, 0.0))
    return [demonstration_row(pair.prompt_ids, ids, group_id, traj, reward) for traj, (ids, reward) in enumerate(sides)]


def _load(config: RunConfig, pairs: Sequence[Preference] | None) -> tuple[list[TokenPair], list[BadRow]]:
    renderer, source = load_renderer(config.model, config.chat_template), Source(config.model)
    max_length = load_encoder(source, load_config(source)).max_length
    try:
        loaded, bad = (pairs, ()) if pairs is not None else load_preferences(config.data, config.preferences)
        if not loaded:
            raise DataError("an empty list of pairs; give at least one")
        margins = bool(config.preferences.margin) or any(pair.margin for pair in loaded)
        if margins and not config.algorithm.get("margin_coef"):
            raise ConfigError("algorithm.margin_coef: missing; the pairs have margins, which count by it: set it, or leave the margins out")
        tokens, unfit = tokenize_pairs(loaded, renderer, max_length, margins)
    except DataError as error:
        raise DataError(f"[data] {error}") from error
    return tokens, [*bad, *unfit]


def _algorithm(config: RunConfig) -> Algorithm:
    """The algorithm of the run file, if it can learn from given pairs; refuses what does not apply to such a run."""
    check_applies(config, "dpo")
    made = make_algorithm(config, None)
    if missing := made.needs - OFFERED:
        name = config.algorithm.get("name")
        raise ConfigError(f"algorithm {name!r} needs {', '.join(sorted(missing))}, which given pairs do not have; use `rlft train`")
    return made
