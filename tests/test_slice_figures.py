"""All figures of a slice against scikit-learn, and what a slice that is too small says."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as judge

from cxr_spark import metrics, operating_points
from cxr_spark.labels import CLASSES
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slice_figures import SMALLEST_SLICE, Figure, slice_figures

CLOSE = {"rel": 0, "abs": 1e-9}
ALL = list(range(9))


def rows(n: int = 300, *, seed: int = 0, absent: int | None = None) -> ScoredRows:
    """Rows that a model knows a little of, in groups of about three."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 9, n)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % 9
    scores = generator.normal(size=(n, 9)) + 1.5 * np.eye(9)[labels]
    powers = np.exp(scores)
    groups = np.array([f"g{g}" for g in generator.integers(0, max(1, n // 3), n)])
    names = np.array([f"nih:{i}" for i in range(n)])
    sources = np.array(["nih"] * n)
    return ScoredRows(names, sources, groups, labels, powers / powers.sum(axis=1, keepdims=True))


def figures(given: ScoredRows, name: str = "all", **options: object) -> dict:
    return {f[1:3]: f for f in slice_figures(name, given, {}, **options)}


@pytest.fixture(scope="module")
def given() -> ScoredRows:
    return rows()


@pytest.fixture(scope="module")
def found(given: ScoredRows) -> dict[tuple[str, str], Figure]:
    return figures(given)


def rounded(given: ScoredRows) -> ScoredRows:
    """Probabilities in steps of a tenth, so that most rows and classes tie with others."""
    steps = np.round(given.probabilities, 1) + 0.1
    return replace(given, probabilities=steps / steps.sum(axis=1, keepdims=True))


def sharpened(given: ScoredRows) -> ScoredRows:
    """Probabilities of 0 and 1, some of them wrong."""
    return replace(given, probabilities=np.eye(9)[given.probabilities.argmax(axis=1)])


CASES = {
    "smooth": rows(),
    "ties": rounded(rows()),
    "extreme": sharpened(rows()),
    "absent": rows(absent=2),
    "absent and ties": rounded(rows(absent=2)),
}


@pytest.mark.parametrize("case", CASES)
def test_figures_over_all_classes_agree_with_scikit_learn(case: str) -> None:
    given = CASES[case]
    found = figures(given)
    p, y = given.probabilities, given.label_index
    predicted = p.argmax(axis=1)
    there = np.unique(y)
    truth = np.eye(9)[y]
    expected = {
        "cce": judge.log_loss(y, np.clip(p, metrics.SMALLEST_PROBABILITY, 1), labels=ALL),
        "accuracy": judge.accuracy_score(y, predicted),
        # Over the classes that occur, whether or not another was predicted.
        "balanced_accuracy": judge.recall_score(y, predicted, labels=there, average="macro"),
        # An absent class that was predicted has an F1, 0, and one that was not has none.
        "f1": judge.f1_score(
            y, predicted, labels=np.union1d(there, predicted), average="macro", zero_division=0
        ),
        "auroc": np.mean([judge.roc_auc_score(truth[:, i], p[:, i]) for i in there]),
        "average_precision": np.mean(
            [judge.average_precision_score(truth[:, i], p[:, i]) for i in there]
        ),
        "brier": sum(judge.brier_score_loss(truth[:, i], p[:, i], pos_label=1) for i in ALL),
        "ece": metrics.ece(p, y),
    }
    for metric, value in expected.items():
        assert found["all", metric].value == pytest.approx(value, **CLOSE), metric
        assert found["all", metric].n == len(given)


def test_the_share_of_the_gain_is_that_of_the_losses_and_has_an_interval() -> None:
    given = rows()
    prior, source_only = np.full((300, 9), 1 / 9), 0.8 * given.probabilities + 0.2 / 9
    guesses = {"cce_prior": prior, "cce_source_only": source_only}
    found = {f[1:3]: f for f in slice_figures("all", given, guesses)}
    share = found["all", "source_share_of_gain"]
    losses = [found["all", name].value for name in ("cce_prior", "cce_source_only", "cce")]
    expected = (losses[0] - losses[1]) / (losses[0] - losses[2])
    assert (share.value, share.n) == (pytest.approx(expected), 300)
    assert 0 < share.ci_low < share.value < share.ci_high < 2
    # Where the prior itself is judged, there is no gain to share.
    nothing = slice_figures("all", replace(given, probabilities=prior), guesses)
    assert [f[3:6] for f in nothing if f.metric == share.metric] == [(None, None, None)]
    assert share.metric not in {metric for _, metric in figures(given)}


def test_what_is_not_defined_is_told_apart_from_what_is_too_small() -> None:
    alone = rows(40).where(np.zeros(40, dtype=int))
    of_one_class = {f.metric: f for f in slice_figures("source=covid", alone, {})}
    assert (of_one_class["auroc"].value, of_one_class["auroc"].lack) == (None, "undefined")
    assert of_one_class["accuracy"].lack is None
    small = {f.metric: f for f in slice_figures("sex=F", alone.where(np.arange(40) < 19), {})}
    assert small["cce"].lack == small["auroc"].lack == "too few"
    absent = figures(rows(19, absent=2))
    assert absent["Covid", "auroc"].lack == absent["Covid", "cce"].lack == "undefined"


def test_figures_of_a_class_agree_with_scikit_learn(
    given: ScoredRows, found: dict[tuple[str, str], Figure]
) -> None:
    p, y = given.probabilities, given.label_index
    predicted = p.argmax(axis=1)
    f1 = judge.f1_score(y, predicted, average=None)
    recall = judge.recall_score(y, predicted, average=None)
    precision = judge.precision_score(y, predicted, average=None)
    for index, name in enumerate(CLASSES):
        is_it = y == index
        expected = {
            "cce": judge.log_loss(y[is_it], p[is_it], labels=ALL),
            "auroc": judge.roc_auc_score(is_it, p[:, index]),
            "average_precision": judge.average_precision_score(is_it, p[:, index]),
            "brier": judge.brier_score_loss(is_it, p[:, index]),
            "f1": f1[index],
            "sensitivity": recall[index],
            "precision": precision[index],
        }
        for metric, value in expected.items():
            assert found[name, metric].value == pytest.approx(value, **CLOSE), metric
        assert found[name, "cce"].n == found[name, "sensitivity"].n == is_it.sum()


def test_every_figure_has_an_interval_around_its_value(
    found: dict[tuple[str, str], Figure],
) -> None:
    for figure in found.values():
        assert figure.ci_low <= figure.value + 0.02, figure
        assert figure.value - 0.02 <= figure.ci_high, figure
        assert figure.ci_high - figure.ci_low < 1.5, figure


def test_intervals_of_macro_figures_are_over_groups() -> None:
    once = rows(90)
    ten_times = once.where(np.repeat(np.arange(90), 10))
    narrow, wide = figures(ten_times), figures(once)
    for metric in ("auroc", "balanced_accuracy", "cce", "brier"):
        assert narrow["all", metric] == pytest.approx(wide["all", metric]._replace(n=900))


def test_an_absent_class_has_no_figures_and_the_means_do_without_it() -> None:
    given = rows(absent=2)
    found = figures(given)
    for metric in ("cce", "auroc", "average_precision", "sensitivity"):
        assert found["Covid", metric].value is None
    assert (found["Covid", "cce"].n, found["Covid", "cce"].ci_low) == (0, None)
    known = [found[name, "auroc"].value for name in CLASSES if name != "Covid"]
    assert found["all", "auroc"].value == pytest.approx(np.mean(known), **CLOSE)
    in_a_slice = figures(given, "sex=F")
    assert not any(class_name == "Covid" for class_name, _ in in_a_slice)


def test_a_slice_that_is_too_small_has_its_number_of_images_and_no_value() -> None:
    found = figures(rows(SMALLEST_SLICE - 1), "sex=F")
    assert {f.class_name for f in found.values()} == {"all"}
    assert {f[3:] for f in found.values()} == {(None, None, None, SMALLEST_SLICE - 1)}
    enough = figures(rows(SMALLEST_SLICE), "sex=F")
    assert enough.keys() > found.keys()
    assert enough["all", "cce"].value is not None
    assert all(f.value is None for f in enough.values() if f.class_name != "all")


def test_one_group_alone_has_values_and_no_interval() -> None:
    alone = replace(rows(40), group_id=np.full(40, "g"))
    found = figures(alone)
    assert found["all", "cce"].value > 0
    assert {(f.ci_low, f.ci_high) for f in found.values()} == {(None, None)}


def test_thresholds_are_the_lowest_that_are_specific_enough_where_they_are_chosen() -> None:
    val, test = rows(seed=1), rows(seed=2)
    points = operating_points.choose(val, 0.9)
    on_val, on_test = figures(val, points=points), figures(test, points=points)
    for index, name in enumerate(CLASSES):
        specificity = on_val[name, "specificity_at_threshold"].value
        assert 0.9 <= specificity < 0.93
        others = val.probabilities[val.label_index != index, index]
        next_lower = val.probabilities[:, index][
            val.probabilities[:, index] < points.thresholds[index]
        ].max()
        assert (others < next_lower).mean() < 0.9
        of_class = test.label_index == index
        found = test.probabilities[of_class, index] >= points.thresholds[index]
        assert on_test[name, "sensitivity_at_threshold"].value == pytest.approx(found.mean())
    assert points.n == 300


def test_a_class_that_val_lacks_has_no_threshold() -> None:
    points = operating_points.choose(rows(absent=2))
    assert np.isnan(points.thresholds[2])
    assert ("Covid", "sensitivity_at_threshold") not in figures(rows(), points=points)


def test_where_ties_leave_no_other_way_a_threshold_finds_nothing() -> None:
    same = replace(rows(30), probabilities=np.full((30, 9), 1 / 9))
    assert (operating_points.choose(same).thresholds > 1 / 9).all()
