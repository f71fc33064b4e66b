"""Figures of draws against scikit-learn and torchmetrics on rows that are really repeated."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as judge
from torchmetrics.functional.classification import binary_sensitivity_at_specificity

from cxr_spark import bootstrap, metrics

CLOSE = {"rel": 0, "abs": 1e-9}
SPECIFICITIES = (0.9, 0.95)


def case(seed: int, n: int = 150, decimals: int | None = None) -> tuple[np.ndarray, ...]:
    """Scores that know a little, what is positive, and groups of one to a few rows."""
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.3
    scores = generator.normal(size=n) + positive
    scores = 1 / (1 + np.exp(-scores))
    if decimals is not None:
        scores = np.round(scores, decimals)
    return scores, positive, generator.integers(0, n // 3, n)


CASES = {
    "smooth": case(0),
    "ties": case(1, decimals=1),
    "extreme": (np.where(case(2)[0] > 0.6, 1.0, 1e-300), *case(2)[1:]),
    "all the same": (np.full(150, 0.5), *case(3)[1:]),
}


@pytest.mark.parametrize("name", CASES)
def test_figures_of_the_data_agree_with_scikit_learn_and_torchmetrics(name: str) -> None:
    scores, positive, groups = CASES[name]
    draws = bootstrap.draw_groups(groups, resamples=1)
    found = bootstrap.rank_figures(scores, positive, draws, SPECIFICITIES)
    assert found.auroc[0] == pytest.approx(judge.roc_auc_score(positive, scores), **CLOSE)
    assert found.auroc[0] == pytest.approx(metrics.auroc(scores, positive), **CLOSE)
    expected = judge.average_precision_score(positive, scores)
    assert found.average_precision[0] == pytest.approx(expected, **CLOSE)
    for specificity, sensitivity in zip(SPECIFICITIES, found.sensitivities, strict=True):
        theirs, _ = binary_sensitivity_at_specificity(
            torch.from_numpy(scores), torch.from_numpy(positive).long(), specificity
        )
        assert sensitivity[0] == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_a_draw_is_what_scikit_learn_says_of_rows_repeated_as_drawn(name: str) -> None:
    scores, positive, groups = CASES[name]
    draws = bootstrap.draw_groups(groups, resamples=20, seed=4)
    found = bootstrap.rank_figures(scores, positive, draws)
    for draw in range(1, 21):
        times = draws.times[draws.group_of_row, draw].astype(int)
        again, truth = np.repeat(scores, times), np.repeat(positive, times)
        assert found.auroc[draw] == pytest.approx(judge.roc_auc_score(truth, again), **CLOSE)
        expected = judge.average_precision_score(truth, again)
        assert found.average_precision[draw] == pytest.approx(expected, **CLOSE)


def test_draws_cut_into_pieces_are_no_different_from_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores, positive, groups = CASES["smooth"]
    draws = bootstrap.draw_groups(groups, resamples=50)
    whole = bootstrap.rank_figures(scores, positive, draws, SPECIFICITIES)
    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 300)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 7 * 50)
    pieces = bootstrap.rank_figures(scores, positive, draws, SPECIFICITIES)
    np.testing.assert_array_equal(pieces.auroc, whole.auroc)
    np.testing.assert_array_equal(pieces.sensitivities, whole.sensitivities)
    np.testing.assert_array_equal(bootstrap.draw_groups(groups, resamples=50).times, draws.times)


@pytest.mark.parametrize("positive", [np.zeros(5, bool), np.ones(5, bool)])
def test_where_one_kind_is_absent_there_is_no_auroc(positive: np.ndarray) -> None:
    draws = bootstrap.draw_groups(np.arange(5), resamples=10)
    found = bootstrap.rank_figures(np.arange(5.0), positive, draws, (0.9,))
    assert np.isnan(found.auroc).all()
    assert np.isnan(found.sensitivities[0]).all()


def test_a_specificity_that_is_just_reached_counts() -> None:
    # Of ten negatives one lies above the second positive: a specificity of 90 %, exactly.
    scores = np.array([0.9, 0.8, 0.7, 0.6, *[0.1] * 8])
    positive = np.array([True, False, True, False, *[False] * 8])
    draws = bootstrap.draw_groups(np.arange(12), resamples=1)
    (found,) = bootstrap.rank_figures(scores, positive, draws, (0.9,)).sensitivities
    assert found[0] == 1
    (found,) = bootstrap.rank_figures(scores, positive, draws, (0.95,)).sensitivities
    assert found[0] == 0.5


def test_sums_agree_with_a_plain_loop_over_the_same_draws() -> None:
    generator = np.random.default_rng(6)
    groups = generator.choice(list("abcdefg"), size=40)
    values = generator.normal(size=(40, 2))
    names = np.unique(groups)
    drawn = np.random.default_rng(9).integers(0, len(names), size=(200, len(names)))
    expected = [np.concatenate([values[groups == names[g]] for g in d]).sum(axis=0) for d in drawn]
    draws = bootstrap.draw_groups(groups, resamples=200, seed=9)
    np.testing.assert_allclose(draws.sums(values)[:, 1:].T, expected, atol=1e-12)
    np.testing.assert_allclose(draws.sums(values)[:, 0], values.sum(axis=0), atol=1e-12)
    assert draws.counts(np.ones(40))[0] == 40


def interval_of_the_mean(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple:
    draws = bootstrap.draw_groups(groups, seed=seed)
    means = draws.sums(values[:, None])[0] / draws.counts(np.ones(len(values)))
    return bootstrap.interval(means, len(draws.times))


def test_intervals_are_over_groups_so_copies_of_a_patient_narrow_nothing() -> None:
    values, groups = np.random.default_rng(7).normal(size=50), np.arange(50)
    once = interval_of_the_mean(values, groups)
    ten_times = interval_of_the_mean(np.repeat(values, 10), np.repeat(groups, 10))
    np.testing.assert_allclose(ten_times, once, atol=1e-12)
    by_image = interval_of_the_mean(np.repeat(values, 10), np.arange(500))
    assert np.diff(by_image) < np.diff(once) / 2


def test_an_interval_is_near_the_one_that_theory_gives() -> None:
    values = np.random.default_rng(8).normal(loc=3.0, size=2000)
    low, high = interval_of_the_mean(values, np.arange(2000))
    half = 1.96 / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_intervals_repeat_by_seed_and_differ_between_seeds() -> None:
    values, groups = np.random.default_rng(1).normal(size=30), np.arange(30)
    first = interval_of_the_mean(values, groups, seed=1)
    assert first == interval_of_the_mean(values, groups, seed=1)
    assert first != interval_of_the_mean(values, groups, seed=2)


def test_one_group_has_no_interval_and_neither_has_what_most_draws_lack() -> None:
    assert bootstrap.interval(np.ones(101), 1) is None
    lacking = np.where(np.arange(101) <= 50, 1.0, np.nan)
    assert bootstrap.interval(lacking, 5) is None
    assert bootstrap.interval(np.where(np.arange(101) <= 60, 1.0, np.nan), 5) == (1.0, 1.0)
