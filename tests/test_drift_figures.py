"""Figures of drift: no alarm without a change, an alarm for each change, none from too little."""

import numpy as np
import pytest

from cxr_spark import drift_figures
from cxr_spark.drift_figures import BINS, LIMITS, Figure, Histograms, compare
from cxr_spark.labels import CLASSES

NO_LIMITS = dict.fromkeys(LIMITS, 0.0)
SHARES = np.array([0.1, 0.1, 0.02, 0.1, 0.1, 0.05, 0.4, 0.1, 0.03])


def scored(
    n: int,
    seed: int,
    *,
    shares: np.ndarray = SHARES,
    confidence: float = 6.0,
    unsure: float = 0.0,
    errors: float = 0.01,
) -> Histograms:
    """Histograms of n images drawn at random; a share `unsure` has the highest entropy."""
    draw = np.random.default_rng(seed)
    failed = int(draw.binomial(n, errors))
    good = n - failed
    sure = draw.beta(confidence, 1.0, good)
    entropy = np.where(draw.random(good) < unsure, 0.999, 0.9 * (1 - sure))
    return Histograms(
        draw.multinomial(good, shares / shares.sum()),
        np.bincount((sure * 0.9999 * BINS["confidence"]).astype(int), minlength=100),
        np.bincount((entropy * BINS["entropy"]).astype(int), minlength=BINS["entropy"]),
        np.array([good, failed]),
    )


def beyond(figures: list[Figure]) -> set[str]:
    return {figure.name for figure in figures if figure.beyond}


def test_runs_like_the_reference_raise_no_alarm_even_without_limits() -> None:
    reference = scored(3000, 0)
    alarms = [beyond(compare(scored(400, seed), reference, NO_LIMITS)) for seed in range(1, 21)]
    assert sum(map(bool, alarms)) <= 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("class_shares", {"shares": np.where(np.arange(9) == 2, 0.5, SHARES)}),
        ("confidence", {"confidence": 3.0}),
        ("errors", {"errors": 0.08}),
        ("unusual", {"unsure": 0.1}),
    ],
)
def test_each_change_raises_its_own_alarm(name: str, change: dict[str, object]) -> None:
    figures = compare(scored(1000, 1, **change), scored(3000, 0), LIMITS)  # type: ignore[arg-type]
    assert name in beyond(figures)
    assert beyond(figures) <= {name, "unusual"}  # less sure is less usual, too


def test_a_change_within_the_limits_raises_none() -> None:
    shares = np.where(np.arange(9) == 6, 0.5, SHARES)
    figures = compare(scored(20_000, 1, shares=shares), scored(20_000, 0), LIMITS)
    (moved,) = [figure for figure in figures if figure.name == "class_shares"]
    assert moved.by_chance < moved.moved < moved.allowed
    assert beyond(figures) == set()


def test_what_a_small_run_shows_by_chance_raises_none() -> None:
    reference = scored(3000, 0)
    limits = LIMITS | {"class_shares": 0.1}
    runs = [compare(scored(120, seed), reference, limits) for seed in range(1, 11)]
    moved = [f.moved for run in runs for f in run if f.name == "class_shares"]
    assert max(moved) > limits["class_shares"]
    assert [beyond(run) for run in runs] == [set()] * 10


def test_fewer_errors_and_less_doubt_are_no_alarm() -> None:
    reference = scored(3000, 0, errors=0.3, unsure=0.3)
    assert beyond(compare(scored(1000, 1, errors=0.0), reference, LIMITS)) <= {"confidence"}


def test_nothing_is_said_of_fewer_images_than_are_needed() -> None:
    enough, few = scored(100, 0, errors=0.0), scored(99, 0, errors=0.0)
    assert compare(few, enough, LIMITS) == compare(enough, few, LIMITS) == []
    assert {figure.name for figure in compare(enough, enough, LIMITS)} == set(LIMITS)


def test_where_nearly_all_fail_the_errors_are_still_told() -> None:
    figures = compare(scored(1000, 1, errors=0.97), scored(1000, 0), LIMITS)
    assert [figure.name for figure in figures] == ["errors"]
    assert beyond(figures) == {"errors"}


def test_a_class_share_is_told_by_the_classes_that_moved_most() -> None:
    shares = np.where(np.arange(9) == 2, 0.5, SHARES)
    figures = compare(scored(1000, 1, shares=shares), scored(3000, 0), LIMITS)
    (found,) = [figure for figure in figures if figure.name == "class_shares"]
    first = found.detail.split(",")[0].split()
    assert first[0] == CLASSES[2]
    assert float(first[1]) == pytest.approx(0.02, abs=0.01)
    assert float(first[3]) == pytest.approx(0.5 / 1.48, abs=0.04)
    # Covid alone has grown, so what it gained is what all others lost.
    assert found.moved == pytest.approx(0.5 / 1.48 - 0.02, abs=0.04)


def test_draws_keep_the_counts_of_both_sides_together() -> None:
    now, reference = np.array([5, 0, 20]), np.array([100, 0, 7])
    drawn, others = drift_figures._draws(now, reference)
    assert (drawn.sum(axis=1) == 25).all()
    assert ((drawn + others) == now + reference).all()
    assert drawn.mean(axis=0) == pytest.approx(25 * (now + reference) / 132, abs=0.1)
