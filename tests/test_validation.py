"""Statistics and evaluation are exact, over every row, in order; figures are those of metrics."""

import time

import numpy as np
import pytest
import torch

from cxr_spark.metrics import cce
from cxr_spark.models import build_model
from cxr_spark.ranks import Place
from cxr_spark.training_plan import TrainingPlan
from cxr_spark.validation import (
    Logits,
    Statistics,
    evaluate,
    seconds_an_image,
    train_statistics,
)
from tests.toys import SIZE, toy_images, toy_plan

ALONE = Place()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    return toy_plan(tmp_path_factory.mktemp("toy"))


def test_train_statistics_are_those_of_all_pixels(plan: TrainingPlan) -> None:
    (first, first_labels), (second, second_labels) = toy_images(64, 0), toy_images(44, 1)
    pixels = np.concatenate([first, second]) / 255
    statistics = train_statistics(plan.train_files, SIZE, ALONE)
    assert statistics.mean == pytest.approx(pixels.mean(), abs=1e-12)
    assert statistics.std == pytest.approx(pixels.std(), abs=1e-12)
    assert statistics.counts == np.bincount([*first_labels, *second_labels]).tolist()


def test_evaluation_is_over_every_row_in_the_order_of_the_files(plan: TrainingPlan) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18")
    statistics = train_statistics(plan.train_files, SIZE, ALONE)
    val = evaluate(model, plan.val_files, SIZE, ALONE, statistics)
    pixels, labels = toy_images(150, 2)
    inputs = torch.from_numpy((pixels[:, None] / 255 - statistics.mean) / statistics.std).float()
    with torch.inference_mode():
        np.testing.assert_allclose(val.logits, model.eval()(inputs).numpy(), atol=1e-4)
    assert (val.labels == labels).all()


def test_the_time_for_an_image_is_that_of_a_pass_after_the_first() -> None:
    class Slow(torch.nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not self.training and torch.is_inference_mode_enabled()
            self.calls += 1
            time.sleep(0.5 if self.calls == 1 else 0.04)
            return torch.zeros(len(images), 9)

    pixels = torch.zeros(4, 1, SIZE, SIZE, dtype=torch.uint8)
    assert 0.01 <= seconds_an_image(Slow(), pixels, Statistics(0.5, 0.2, [1] * 9)) < 0.1


def test_figures_are_of_corrected_logits_and_none_where_undefined() -> None:
    logits = np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32)
    val, offset = Logits(logits, np.arange(40) % 8), np.linspace(-1, 1, 9)
    figures = val.figures(offset)
    powers = np.exp(logits + offset)
    expected = cce(powers / powers.sum(axis=1, keepdims=True), val.labels)
    assert figures["val_cce"] == pytest.approx(expected)
    assert figures["val_auroc_tuberculosis"] is None
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "val_cce" and value)
