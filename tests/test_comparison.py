"""Two models on the same images, against scipy, worked examples and theory."""

import numpy as np
import pytest
from scipy.stats import binomtest

from cxr_spark.comparison import Comparison, figures_of
from cxr_spark.scored_rows import ScoredRows

N = 200


def answers(sure: np.ndarray, right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, 9) probabilities: `sure` for the truth where right, else for the class after it."""
    read = np.where(right, labels, (labels + 1) % 9)
    probabilities = np.tile(((1 - sure) / 8)[:, None], 9)
    probabilities[np.arange(len(labels)), read] = sure
    return probabilities


def comparison(ours_right: np.ndarray, theirs_right: np.ndarray, **sure: float) -> Comparison:
    labels = np.arange(N) % 9
    ours = answers(np.full(N, sure.get("ours", 0.9)), ours_right, labels)
    theirs = answers(np.full(N, sure.get("theirs", 0.9)), theirs_right, labels)
    names = np.array([f"i{i}" for i in range(N)])
    rows = ScoredRows(names, np.array(["nih"] * N), names, labels, ours)
    return Comparison({"model_version": "old"}, rows, theirs, related=4, unscored=2)


def told(given: Comparison) -> dict:
    return {f[1:3]: f for f in figures_of(given)}


def test_gained_and_lost_are_what_one_model_alone_reads_right() -> None:
    at = np.arange(N)
    given = comparison(at >= 10, at < 170)
    assert np.flatnonzero(given.gained).tolist() == list(range(170, 200))
    assert np.flatnonzero(given.lost).tolist() == list(range(10))
    found = told(given)
    values = {m: found["all", m].value for m in ("gained", "lost", "mcnemar_p")}
    assert values == {"gained": 30, "lost": 10, "mcnemar_p": binomtest(10, 40).pvalue}
    assert found["all", "accuracy_difference"].value == pytest.approx(20 / N)
    assert found["all", "related_to_other"].value == 4
    assert found["all", "unscored_by_other"].value == 2
    assert {figure.slice_name for figure in found.values()} == {"compared_with=old"}


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    always = np.ones(N, dtype=bool)
    found = told(comparison(always, always, ours=0.9, theirs=0.5))
    expected = np.log(0.5) - np.log(0.9)
    assert found["all", "cce_difference"][3:6] == pytest.approx([expected] * 3)
    assert found["Covid", "cce_difference"].value == pytest.approx(expected)
    assert found["all", "mcnemar_p"].value == 1


def test_pairing_leaves_out_what_both_models_find_hard() -> None:
    hard = np.random.default_rng(0).random(N) < 0.5
    alike = told(comparison(~hard, ~hard, ours=0.9, theirs=0.88))
    apart = told(comparison(~hard, np.roll(~hard, 1), ours=0.9, theirs=0.88))
    widths = [
        found["all", "cce_difference"].ci_high - found["all", "cce_difference"].ci_low
        for found in (alike, apart)
    ]
    assert widths[0] < 0.1 * widths[1]
