"""Softmax, prior correction and temperature scaling do what their definitions say."""

import numpy as np
import pytest

from cxr_spark.calibration import (
    TEMPERATURES,
    fit_temperature,
    logit_offset,
    probabilities,
    softmax,
)
from cxr_spark.metrics import cce


def drawn_rows(scale: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the softmax of logits, and these logits multiplied by a scale."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 9))
    cumulated = softmax(logits).cumsum(axis=1)
    labels = (cumulated < rng.random((count, 1))).sum(axis=1)
    return logits * scale, labels


def test_softmax_of_large_logits_is_finite_and_sums_to_one() -> None:
    probabilities = softmax([[1000.0, 999.0, -1000.0]])
    np.testing.assert_allclose(probabilities, [[0.7310586, 0.2689414, 0.0]], atol=1e-7)


def test_softmax_divides_by_the_temperature() -> None:
    np.testing.assert_allclose(softmax([[2.0, 1.0]], 2.0), softmax([[1.0, 0.5]]))


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_scaling_of_the_logits(scale: float) -> None:
    logits, labels = drawn_rows(scale)
    assert fit_temperature(logits, labels) == pytest.approx(scale, rel=0.03)


def test_no_other_temperature_gives_a_lower_cce() -> None:
    logits, labels = drawn_rows(0.6, count=200)
    best = fit_temperature(logits, labels)
    others = np.geomspace(*TEMPERATURES, 200)
    lowest = min(cce(softmax(logits, temperature), labels) for temperature in others)
    assert cce(softmax(logits, best), labels) <= lowest


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    assert fit_temperature([[3.0, 0.0], [0.0, 3.0]], [0, 1]) == pytest.approx(TEMPERATURES[0])


def test_rows_that_are_all_wrong_ask_for_the_softest() -> None:
    assert fit_temperature([[3.0, 0.0], [0.0, 3.0]], [1, 0]) == pytest.approx(TEMPERATURES[1])


def test_the_offset_turns_posteriors_of_one_prior_into_those_of_another() -> None:
    likelihoods = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    wanted, learned = np.array([0.7, 0.2, 0.1]), np.array([1, 1, 1]) / 3
    logits = np.log(likelihoods * learned)
    posteriors = likelihoods * wanted / (likelihoods * wanted).sum(axis=1, keepdims=True)
    found = probabilities(logits, 1.0, logit_offset(wanted, learned))
    np.testing.assert_allclose(found, posteriors)


def test_the_offset_comes_before_the_temperature() -> None:
    found = probabilities([[1.0, 0.0]], 2.0, [0.0, 1.0])
    np.testing.assert_allclose(found, [[0.5, 0.5]])


def test_equal_priors_and_absent_classes_have_no_offset() -> None:
    assert not logit_offset([0.5, 0.5, 0.0], [0.5, 0.5, 0.0]).any()
    assert logit_offset([0.6, 0.4, 0.0], [0.5, 0.5, 0.0])[2] == 0
