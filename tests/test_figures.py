"""Which slices are told, what is within a source, and an evaluation in words."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cxr_spark import metrics
from cxr_spark.evaluation_words import headline, table
from cxr_spark.figures import Evaluation, Yardsticks, figures_of
from cxr_spark.scored_rows import ScoredRows
from cxr_spark.slices import in_order, slices_of

N = 120
COUNTS = {"n": N, "missing": 1, "errors": 2, "related": 3}


def rows() -> ScoredRows:
    """Of two sources: nih has classes 0 and 1, covid class 2 alone."""
    labels = np.arange(N) % 3
    source = np.where(labels == 2, "covid", "nih")
    probabilities = np.full((N, 9), 0.02)
    probabilities[np.arange(N), labels] = 0.5
    probabilities[np.arange(N), (labels + 1) % 3] = 0.36
    names = np.array([f"i{i}" for i in range(N)])
    slices = {"source": source, "sex": np.where(np.arange(N) < 10, "F", "M")}
    return ScoredRows(names, source, names, labels, probabilities, slices)


TRAIN = {"nih": np.array([30, 10] + [0] * 7), "covid": np.array([0, 0, 20] + [0] * 6)}


def evaluation(given: ScoredRows, **options: object) -> Evaluation:
    found = figures_of(given, Yardsticks(TRAIN, **options), COUNTS)
    return Evaluation({"model_version": "m1"}, "test", 1, 1, given, found, COUNTS)


@pytest.fixture(scope="module")
def judged() -> Evaluation:
    border_only = np.full((N, 9), 1 / 9)
    border_only[::3] = np.eye(9)[0]  # knows the rows of class 0, and no others
    return evaluation(rows(), border_only=border_only)


def test_each_slice_of_each_kind_is_told_and_no_figure_twice(judged: Evaluation) -> None:
    expected = ["source=covid", "source=nih", "sex=F", "sex=M", "within=nih"]
    assert judged.slice_names() == expected
    keys = [figure[:3] for figure in judged.figures]
    assert len(keys) == len(set(keys))
    assert judged.figure("cce", slice_name="sex=F") == ("sex=F", "all", "cce", *[None] * 3, 10)
    assert judged.figure("cce", slice_name="source=covid").n == N // 3


def test_a_slice_of_a_source_is_judged_as_its_rows_alone_would_be(judged: Evaluation) -> None:
    given = rows()
    of_nih = given.where(given.source == "nih")
    value = judged.value("cce", slice_name="source=nih")
    assert value == pytest.approx(metrics.cce(of_nih.probabilities, of_nih.label_index))
    border_only = judged.value("cce_border_only", slice_name="source=nih")
    assert border_only == pytest.approx(np.log(9) / 2)
    assert judged.value("cce_border_only", slice_name="source=covid") == pytest.approx(np.log(9))


def test_within_a_source_only_its_own_classes_are_possible(judged: Evaluation) -> None:
    # Class 0 has 0.5 beside 0.36 for class 1; class 1 has 0.5 beside 0.02 for class 0.
    expected = -(np.log(0.5 / 0.86) + np.log(0.5 / 0.52)) / 2
    assert judged.value("cce", slice_name="within=nih") == pytest.approx(expected)
    shares = -(np.log(0.75) + np.log(0.25)) / 2
    assert judged.value("cce_source_only", slice_name="within=nih") == pytest.approx(shares)
    assert judged.value("cce_border_only", slice_name="within=nih") == pytest.approx(np.log(2) / 2)


def test_images_that_a_list_names_as_train_do_not_count_within_their_source() -> None:
    judged = evaluation(replace(rows(), known_as_train=np.arange(N) < 60))
    assert judged.figure("cce", slice_name="within=nih").n == 40
    assert judged.figure("cce", slice_name="source=nih").n == 80


def test_rows_left_out_are_figures_too(judged: Evaluation) -> None:
    assert [judged.value(name) for name in ("missing", "errors", "related")] == [1, 2, 3]
    assert judged.figure("missing").n == N + 6


def test_what_is_known_of_an_image_decides_its_slices() -> None:
    facts = pd.DataFrame(
        {
            "source": ["nih", "covid"],
            "sex": ["F", None],
            "view": ["AP", None],
            "format": ["PNG", None],
            "age_years": [59, None],
            "width": [1024, 2000],
            "height": [900, None],
            "brightness": [85.0, None],
        }
    )
    slices = slices_of(facts)
    assert {kind: list(names) for kind, names in slices.items()} == {
        "source": ["nih", "covid"],
        "sex": ["F", "unknown"],
        "age": ["40-59", "unknown"],
        "view": ["AP", "unknown"],
        "size": ["500-999 px", "unknown"],
        "format": ["PNG", "unknown"],
        "brightness": ["middle", "unknown"],
    }


def test_bands_stand_in_their_order_and_the_unknown_last() -> None:
    names = np.array(["unknown", "80+", "0-17", "40-59"])
    assert in_order(names) == ["0-17", "40-59", "80+", "unknown"]
    assert in_order(np.array(["nih", "unknown", "covid"])) == ["covid", "nih", "unknown"]


def test_the_headline_tells_the_baselines_and_what_the_source_gives(judged: Evaluation) -> None:
    words = headline(judged)
    assert "m1 on test: CCE 0.693 [0.693, 0.693] on 120 images" in words
    assert "border only 1.465" in words
    share = judged.figure("source_share_of_gain")
    ends = f"[{share.ci_low:.0%}, {share.ci_high:.0%}]"
    assert f"the source alone gives {share.value:.0%} {ends} of the model's gain" in words
    assert "border only" not in headline(evaluation(rows()))


def test_the_table_has_a_line_a_figure_with_its_interval_and_none_for_what_was_not_asked(
    judged: Evaluation,
) -> None:
    lines = table(judged)
    assert len({len(line) for line in lines if "within" not in line}) == 1
    assert lines[1].split() == ["CCE", "0.693", "0.693", "to", "0.693", "120"]
    assert "within nih alone" in lines
    assert not any("pointing" in line or "against" in line for line in lines)
