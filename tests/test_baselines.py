"""What is known without reading an image: shares, sources, glances."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cxr_spark import baselines, metrics

CLOSE = {"rel": 0, "abs": 1e-9}


def test_the_prior_knows_the_class_shares_of_train() -> None:
    counts = np.array([6, 3, 1, 0, 0, 0, 0, 0, 0])
    labels = np.array([0, 0, 1, 2])
    prior = baselines.prior_probabilities(counts, labels)
    np.testing.assert_allclose(prior, np.tile(counts / 10, (4, 1)))
    expected = -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4
    assert metrics.cce(prior, labels) == pytest.approx(expected, **CLOSE)


def test_a_class_that_train_lacks_is_smoothed_only_where_it_is_needed() -> None:
    counts = np.array([9, 0, 0, 0, 0, 0, 0, 0, 0])
    unneeded = baselines.prior_probabilities(counts, np.array([0]))
    needed = baselines.prior_probabilities(counts, np.array([0, 8]))
    np.testing.assert_allclose(unneeded[0], np.eye(9)[0])
    np.testing.assert_allclose(needed[0], np.array([10, 1, 1, 1, 1, 1, 1, 1, 1]) / 18)


def test_source_only_gives_each_image_the_shares_of_its_own_source() -> None:
    counts = {"nih": np.array([3, 1, 0, 0, 0, 0, 0, 0, 0]), "covid": np.array([0, 0, 5] + [0] * 6)}
    sources = np.array(["covid", "nih", "new", "nih"])
    given = baselines.source_only_probabilities(counts, sources, np.array([2, 0, 4, 1]))
    np.testing.assert_allclose(given[0], np.eye(9)[2])
    np.testing.assert_allclose(given[1], [0.75, 0.25] + [0] * 7)
    np.testing.assert_allclose(given[2], np.full(9, 1 / 9))
    np.testing.assert_allclose(given[3], given[1])


def test_one_source_that_needs_smoothing_leaves_the_other_exact() -> None:
    counts = {"nih": np.array([3, 1, 0, 0, 0, 0, 0, 0, 0]), "covid": np.array([0, 0, 5] + [0] * 6)}
    given = baselines.source_only_probabilities(counts, ["covid", "nih"], [3, 0])
    np.testing.assert_allclose(given[0], np.array([1, 1, 6, 1, 1, 1, 1, 1, 1]) / 14)
    np.testing.assert_allclose(given[1], [0.75, 0.25] + [0] * 7)


def test_there_is_no_share_of_the_gain_where_there_is_no_gain() -> None:
    prior, source_only, model = np.array([[2.0, 1.2, 1.0], [2.0, 1.0, 1.5], [2.0, 1.0, 2.0]]).T
    shares = baselines.share_of_gain(prior, source_only, model)
    np.testing.assert_allclose(shares, [0.8, 2.0, np.nan])


def test_within_some_classes_probabilities_are_shared_among_these() -> None:
    allowed = np.array([True, True] + [False] * 7)
    given = np.array([[0.2, 0.1, 0.7] + [0.0] * 6, [0.0, 0.0, 1.0] + [0.0] * 6])
    kept = baselines.within(given, allowed)
    np.testing.assert_allclose(kept[0], [2 / 3, 1 / 3] + [0] * 7)
    np.testing.assert_allclose(kept[1], [0.5, 0.5] + [0] * 7)


def test_a_glance_sees_the_border_and_the_whole_at_16_pixels() -> None:
    framed = np.full((96, 96), 50, dtype=np.uint8)
    framed[:6] = framed[-6:] = 200
    framed[:, :6] = framed[:, -6:] = 200
    seen = baselines.glance(framed)
    assert (seen.shape, seen.dtype) == ((baselines.GLANCE_SIZE,), np.uint8)
    assert set(seen[:-256]) == {200}
    thumbnail = seen[-256:].reshape(16, 16)
    assert (thumbnail[1:-1, 1:-1] == 50).all()


def glances_of(labels: np.ndarray, seed: int) -> np.ndarray:
    """Glances whose first inputs tell the class a little: (N, 12) uint8."""
    generator = np.random.default_rng(seed)
    grey = generator.normal(120, 20, (len(labels), 12))
    grey[:, :9] += 25 * np.eye(9)[labels]
    return np.clip(grey, 0, 255).astype(np.uint8)


def test_the_glance_model_is_the_logistic_regression_that_scikit_learn_fits() -> None:
    labels = np.arange(450) % 9
    glances = glances_of(labels, 1)
    model = baselines.fit_glance_model(glances, labels, glances[:0], labels[:0])
    inputs = (glances - model.mean) / model.scale
    penalty = baselines.PENALTIES[-1]
    judge = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-8, max_iter=1000)
    theirs = judge.fit(inputs, labels).predict_proba(inputs)
    np.testing.assert_allclose(model.probabilities(glances), theirs, atol=2e-3)


def test_held_out_rows_choose_the_penalty() -> None:
    labels = np.arange(90) % 9
    train, held_out = glances_of(labels, 1), glances_of(labels, 2)
    chosen = baselines.fit_glance_model(train, labels, held_out, labels)
    timid = baselines.fit_glance_model(train, labels, held_out[:0], labels[:0])
    loss, timid_loss = (metrics.cce(m.probabilities(held_out), labels) for m in (chosen, timid))
    assert loss < timid_loss < math.log(9)


def test_a_class_that_is_never_seen_gets_little_and_constant_inputs_nothing_breaks() -> None:
    labels = np.arange(40) % 2
    glances = np.zeros((40, 12), dtype=np.uint8)
    model = baselines.fit_glance_model(glances, labels, glances, labels)
    given = model.probabilities(glances)
    np.testing.assert_allclose(given[:, :2], 0.5, atol=0.01)
    assert metrics.is_distribution(given).all()
