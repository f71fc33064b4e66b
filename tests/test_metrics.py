"""Metrics against scikit-learn, worked examples and a plain-loop bootstrap."""

import math

import numpy as np
import pytest
from sklearn import metrics as judge

from cxr_spark import metrics

CLASSES = range(9)
CLOSE = {"rel": 0, "abs": 1e-9}


def random_case(
    seed: int, *, n: int = 400, sharpness: float = 1.0, decimals: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 9) probabilities that know a little, and (n,) labels; rounded ones have many ties."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 9, n)
    scores = generator.normal(size=(n, 9)) + np.eye(9)[labels]
    exponentials = np.exp(sharpness * (scores - scores.max(axis=1, keepdims=True)))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    if decimals is not None:
        probabilities = np.round(probabilities, decimals)
        probabilities[:, 0] += 1 - probabilities.sum(axis=1)
        probabilities = np.clip(probabilities, 0, 1)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, labels


CASES = {
    "smooth": random_case(0),
    "ties": random_case(1, decimals=1),
    "extreme": random_case(2, sharpness=200.0),
    "one row": random_case(3, n=1),
}


def judged_cce(probabilities: np.ndarray, labels: np.ndarray) -> float:
    clipped = np.clip(probabilities, metrics.SMALLEST_PROBABILITY, 1)
    return judge.log_loss(labels, clipped, labels=list(CLASSES))


@pytest.mark.parametrize("case", CASES)
def test_cce_accuracy_and_confusion_agree_with_scikit_learn(case: str) -> None:
    probabilities, labels = CASES[case]
    predicted = probabilities.argmax(axis=1)
    assert metrics.cce(probabilities, labels) == pytest.approx(
        judged_cce(probabilities, labels), **CLOSE
    )
    assert metrics.accuracy(probabilities, labels) == judge.accuracy_score(labels, predicted)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(probabilities, labels),
        judge.confusion_matrix(labels, predicted, labels=list(CLASSES)),
    )


@pytest.mark.parametrize("case", ["smooth", "ties", "extreme"])
def test_auroc_and_roc_points_agree_with_scikit_learn(case: str) -> None:
    probabilities, labels = CASES[case]
    ours = metrics.auroc_per_class(probabilities, labels)
    for index in CLASSES:
        theirs = judge.roc_auc_score(labels == index, probabilities[:, index])
        assert ours[index] == pytest.approx(theirs, **CLOSE)
        false_rate, true_rate = metrics.roc_points(probabilities[:, index], labels == index)
        expected = judge.roc_curve(
            labels == index, probabilities[:, index], drop_intermediate=False
        )
        np.testing.assert_allclose(false_rate, expected[0], atol=1e-12)
        np.testing.assert_allclose(true_rate, expected[1], atol=1e-12)


def test_an_absent_class_has_no_auroc_and_the_others_keep_theirs() -> None:
    probabilities, labels = random_case(4)
    kept = labels != 2
    ours = metrics.auroc_per_class(probabilities[kept], labels[kept])
    assert math.isnan(ours[2])
    assert ours[5] == pytest.approx(
        judge.roc_auc_score(labels[kept] == 5, probabilities[kept, 5]), **CLOSE
    )
    only_class = np.full(3, 7)
    assert np.isnan(metrics.auroc_per_class(probabilities[:3], only_class)).all()


def test_a_true_class_with_probability_zero_costs_the_clip_and_no_more() -> None:
    sure = np.eye(9)[[3, 3]]
    assert metrics.log_losses(sure, [3, 4]) == pytest.approx([0.0, -math.log(1e-15)])


def test_without_rows_cce_and_accuracy_are_not_a_number() -> None:
    nothing = np.empty((0, 9))
    assert math.isnan(metrics.cce(nothing, np.array([], dtype=int)))
    assert math.isnan(metrics.accuracy(nothing, np.array([], dtype=int)))
    assert metrics.confusion_matrix(nothing, np.array([], dtype=int)).sum() == 0


@pytest.mark.parametrize(
    "probabilities, labels, complaint",
    [
        (np.full((2, 8), 1 / 8), [0, 1], r"expected shape \(2, 9\)"),
        (np.full((2, 9), 1 / 9), [0, 1, 2], r"expected shape \(3, 9\)"),
        (np.full((2, 9), 1 / 9), [0, 9], "expected 0 to 8"),
        (np.full((2, 9), 1 / 9), [-1, 0], "expected 0 to 8"),
        (np.vstack([np.eye(9)[0], np.full(9, np.nan)]), [0, 1], "row 1 is no distribution"),
        (np.full((2, 9), 0.2), [0, 1], "row 0 is no distribution"),
        (np.array([[1.5, -0.5, 0, 0, 0, 0, 0, 0, 0]]), [0], "row 0 is no distribution"),
    ],
)
def test_what_is_no_distribution_or_no_label_is_refused(
    probabilities: np.ndarray, labels: list[int], complaint: str
) -> None:
    with pytest.raises(metrics.MetricInputError, match=complaint):
        metrics.cce(probabilities, labels)


def test_float32_probabilities_as_a_network_gives_them_are_distributions() -> None:
    probabilities, labels = random_case(5)
    narrow = probabilities.astype(np.float32)
    assert metrics.is_distribution(narrow).all()
    assert metrics.cce(narrow, labels) == pytest.approx(metrics.cce(probabilities, labels), 1e-5)


def test_the_prior_knows_the_class_shares_of_train() -> None:
    counts = np.array([6, 3, 1, 0, 0, 0, 0, 0, 0])
    labels = np.array([0, 0, 1, 2])
    prior = metrics.prior_probabilities(counts, labels)
    np.testing.assert_allclose(prior, np.tile(counts / 10, (4, 1)))
    expected = -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4
    assert metrics.cce(prior, labels) == pytest.approx(expected, **CLOSE)


def test_a_class_that_train_lacks_is_smoothed_only_where_it_is_needed() -> None:
    counts = np.array([9, 0, 0, 0, 0, 0, 0, 0, 0])
    unneeded = metrics.prior_probabilities(counts, np.array([0]))
    needed = metrics.prior_probabilities(counts, np.array([0, 8]))
    np.testing.assert_allclose(unneeded[0], np.eye(9)[0])
    np.testing.assert_allclose(needed[0], np.array([10, 1, 1, 1, 1, 1, 1, 1, 1]) / 18)


def test_source_only_gives_each_image_the_shares_of_its_own_source() -> None:
    counts = {"nih": np.array([3, 1, 0, 0, 0, 0, 0, 0, 0]), "covid": np.array([0, 0, 5] + [0] * 6)}
    sources = np.array(["covid", "nih", "new", "nih"])
    given = metrics.source_only_probabilities(counts, sources, np.array([2, 0, 4, 1]))
    np.testing.assert_allclose(given[0], np.eye(9)[2])
    np.testing.assert_allclose(given[1], [0.75, 0.25] + [0] * 7)
    np.testing.assert_allclose(given[2], np.full(9, 1 / 9))
    np.testing.assert_allclose(given[3], given[1])


def test_one_source_that_needs_smoothing_leaves_the_other_exact() -> None:
    counts = {"nih": np.array([3, 1, 0, 0, 0, 0, 0, 0, 0]), "covid": np.array([0, 0, 5] + [0] * 6)}
    given = metrics.source_only_probabilities(counts, ["covid", "nih"], [3, 0])
    np.testing.assert_allclose(given[0], np.array([1, 1, 6, 1, 1, 1, 1, 1, 1]) / 14)
    np.testing.assert_allclose(given[1], [0.75, 0.25] + [0] * 7)


def test_the_share_of_the_gain_is_none_where_there_is_no_gain() -> None:
    assert metrics.share_of_gain(2.0, 1.2, 1.0) == pytest.approx(0.8)
    assert metrics.share_of_gain(2.0, 1.0, 1.5) == pytest.approx(2.0)
    assert metrics.share_of_gain(2.0, 1.0, 2.0) is None


def test_the_bootstrap_agrees_with_a_plain_loop_over_the_same_draws() -> None:
    generator = np.random.default_rng(6)
    groups = generator.choice(list("abcdefg"), size=40)
    values = generator.normal(size=(40, 2))
    names = np.unique(groups)
    draws = np.random.default_rng(9).integers(0, len(names), size=(200, len(names)))
    expected = [
        np.concatenate([values[groups == names[g]] for g in draw]).mean(axis=0) for draw in draws
    ]
    ours = metrics.bootstrap_means(values, groups, resamples=200, seed=9)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_pieces_of_the_bootstrap_are_no_different_from_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, groups = np.arange(64.0)[:, None], np.arange(64)
    whole = metrics.bootstrap_means(values, groups, resamples=100)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 64 * 7)
    np.testing.assert_array_equal(metrics.bootstrap_means(values, groups, resamples=100), whole)


def test_intervals_are_over_groups_so_copies_of_a_patient_narrow_nothing() -> None:
    generator = np.random.default_rng(7)
    values, groups = generator.normal(size=(50, 1)), np.arange(50)
    once = metrics.intervals(values, groups)
    ten_times = metrics.intervals(np.repeat(values, 10, axis=0), np.repeat(groups, 10))
    np.testing.assert_allclose(ten_times, once, atol=1e-12)
    by_image = metrics.intervals(np.repeat(values, 10, axis=0), np.arange(500))
    assert np.diff(by_image, axis=0) < np.diff(once, axis=0) / 2


def test_an_interval_is_near_the_one_that_theory_gives() -> None:
    values = np.random.default_rng(8).normal(loc=3.0, size=(2000, 1))
    low, high = metrics.intervals(values, np.arange(2000))[:, 0]
    half = 1.96 / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_intervals_repeat_by_seed_and_differ_between_seeds() -> None:
    values, groups = np.random.default_rng(1).normal(size=(30, 1)), np.arange(30)
    first = metrics.intervals(values, groups, seed=1)
    np.testing.assert_array_equal(first, metrics.intervals(values, groups, seed=1))
    assert not np.array_equal(first, metrics.intervals(values, groups, seed=2))


def test_one_group_has_no_interval() -> None:
    assert np.isnan(metrics.intervals(np.ones((5, 2)), ["a"] * 5)).all()
