"""Metrics against scikit-learn, torchmetrics and worked examples."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as judge
from torchmetrics.functional.classification import multiclass_calibration_error

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


@pytest.mark.parametrize("bins", [10, 15])
def test_ece_agrees_with_torchmetrics_as_far_as_its_single_precision_goes(bins: int) -> None:
    probabilities, labels = CASES["smooth"]
    given, truth = torch.from_numpy(probabilities), torch.from_numpy(labels)
    theirs = multiclass_calibration_error(given, truth, 9, n_bins=bins, norm="l1")
    assert metrics.ece(probabilities, labels, bins) == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_ece_agrees_with_a_plain_loop_over_the_bins(case: str) -> None:
    probabilities, labels = CASES[case]
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, 16)
    edges[-1] = 2
    error = 0.0
    for low, high in itertools.pairwise(edges):
        there = (confidence >= low) & (confidence < high)
        if there.any():
            error += there.mean() * abs(hit[there].mean() - confidence[there].mean())
    assert metrics.ece(probabilities, labels) == pytest.approx(error, **CLOSE)


def test_ece_of_sure_answers_is_the_share_of_wrong_ones() -> None:
    sure = np.eye(9)[[0, 1, 2, 3]]
    assert metrics.ece(sure, [0, 1, 2, 4]) == pytest.approx(0.25)
    assert metrics.ece(sure, [0, 1, 2, 3]) == 0


def test_bins_of_confidence_are_closed_below_and_the_last_one_above_too() -> None:
    assert metrics.confidence_bin([0.0, 0.249, 0.25, 0.75, 1.0], 4).tolist() == [0, 0, 1, 3, 3]


def test_without_rows_ece_is_not_a_number() -> None:
    assert math.isnan(metrics.ece(np.empty((0, 9)), np.array([], dtype=int)))
