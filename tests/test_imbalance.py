"""Weights and priors make classes equal where they are to be, and leave absent ones alone."""

import numpy as np
import pytest

from cxr_spark.imbalance import IMBALANCE, class_weights, learned_priors, logit_adjustment

COUNTS = [70, 20, 10, 0]


def test_without_a_remedy_the_shares_of_train_are_learned() -> None:
    assert learned_priors(COUNTS, "none").tolist() == [0.7, 0.2, 0.1, 0.0]


@pytest.mark.parametrize("imbalance", IMBALANCE[1:])
def test_a_remedy_makes_the_classes_that_occur_equal(imbalance: str) -> None:
    assert learned_priors(COUNTS, imbalance) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])


def test_weighted_rows_of_each_class_count_the_same_and_1_in_the_mean() -> None:
    weights, counts = class_weights(COUNTS), np.array(COUNTS)
    assert (weights * counts)[:3] == pytest.approx([100 / 3] * 3)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[3] == 1


def test_the_adjustment_is_the_log_share_and_nothing_for_an_absent_class() -> None:
    assert logit_adjustment(COUNTS) == pytest.approx([*np.log([0.7, 0.2, 0.1]), 0])
