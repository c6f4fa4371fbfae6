import random

import pytest

from rlft.actors.weights.probe import MAX_SLOPE_OFF, MIN_CLEAR, Probe, probe_ids, slope
from rlft.errors import PublishError
from rlft.recipes.starter import make_tokenizer

N = 120


def normal(scale, seed):
    rng = random.Random(seed)
    return [rng.gauss(0, scale) for _ in range(N)]


def plus(*parts):
    return [sum(values) for values in zip(*parts, strict=True)]


def times(factor, values):
    return [factor * value for value in values]


BASE, CHANGE = normal(2.0, 0), normal(0.3, 1)
NOISE = {"float32": 1e-5, "bfloat16": 0.08}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_the_slope_is_the_share_of_the_change_that_the_engine_shows(share):
    found = slope(plus(times(share, CHANGE), normal(0.01, 2)), CHANGE, normal(0.01, 3))
    assert found.value == pytest.approx(share, abs=0.01) and found.clear == pytest.approx(30, rel=0.3)
    assert found.wrong == (share != 1.0)


def test_a_change_below_rounding_gives_no_verdict():
    """In bfloat16 a small step is lost in the rounding of both sides, and the slope is that of noise on noise."""
    lost = slope(normal(0.08, 2), normal(0.08, 3), normal(0.08, 4))
    assert abs(lost.value) < 0.3 and not lost.wrong
    assert not slope(normal(0.08, 2), [0.0] * N, normal(0.08, 4)).wrong


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_engine_that_follows_the_learner_passes_for_a_thousand_publishes(dtype):
    probe, ours, off = Probe([], dtype), BASE, 0.0
    for version in range(1000):
        theirs = plus(ours, normal(NOISE[dtype], 10 + version))
        figures = probe.compare([theirs], [ours], "worker", version)
        for when in ("first", "last") if version else ():
            if figures[f"publish/clear_{when}"] > MIN_CLEAR:
                off = max(off, abs(figures[f"publish/slope_{when}"] - 1))
        ours = plus(ours, normal(10 ** random.Random(version).uniform(-4, -1), 5000 + version))
    assert 0 < off < MAX_SLOPE_OFF / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_an_engine_that_follows_by_another_share_is_found_as_soon_as_the_change_shows(dtype, share):
    probe, change = Probe([], dtype), times(0.01 if dtype == "float32" else 2.0, CHANGE)
    probe.compare([plus(BASE, normal(NOISE[dtype], 3))], [BASE], "worker", 0)
    theirs = plus(BASE, times(share, change), normal(NOISE[dtype], 4))
    with pytest.raises(PublishError, match="worker did not follow the learner to version 7: since the first publish"):
        probe.compare([theirs], [plus(BASE, change)], "worker", 7)


def test_adapters_merged_in_bfloat16_may_move_the_engine_less_and_are_reported():
    probe, strict = (Probe([], "bfloat16", merged=merged) for merged in (True, False))
    for one in (probe, strict):
        one.compare([plus(BASE, normal(0.02, 3))], [BASE], "worker", 0)
    figures = probe.compare([plus(BASE, times(0.4, CHANGE))], [plus(BASE, CHANGE)], "worker", 1)
    assert figures["publish/slope_first"] == pytest.approx(0.4, abs=0.02)
    with pytest.raises(PublishError):
        strict.compare([plus(BASE, times(0.4, CHANGE))], [plus(BASE, CHANGE)], "worker", 1)


def test_one_missed_step_shows_in_the_change_since_the_last_publish():
    probe = Probe([], "float32")
    probe.compare([plus(BASE, normal(1e-5, 2))], [BASE], "worker", 0)
    far = plus(BASE, times(10, CHANGE))
    probe.compare([plus(far, normal(1e-5, 3))], [far], "worker", 1)
    with pytest.raises(PublishError, match="since the last publish .* moved by -?0.0"):
        probe.compare([plus(far, normal(1e-5, 4))], [plus(far, normal(0.002, 5))], "worker", 2)


@pytest.mark.parametrize(("dtype", "passes", "fails"), [("float32", 0.005, 0.02), ("bfloat16", 0.3, 0.7)])
def test_wrong_mathematics_shows_at_version_0_where_nothing_has_changed_yet(dtype, passes, fails):
    Probe([], dtype).compare([plus(BASE, [passes] * N)], [BASE], "worker", 0)
    for engine in (plus(BASE, [fails] * N), [float("nan")] * N):
        with pytest.raises(PublishError, match="worker computes another policy than the learner at version 0"):
            Probe([], dtype).compare([engine], [BASE], "worker", 0)


def test_the_probe_is_text_of_the_runs_tokenizer_and_fits_a_short_context():
    tokenizer = make_tokenizer()
    ids = probe_ids(tokenizer, 1024)
    assert all(len(sequence) == 32 for sequence in ids) and tokenizer.decode(ids[0]).startswith("The old lighthouse keeper")
    assert all(len(sequence) == 15 for sequence in probe_ids(tokenizer, 16))
