"""A dry run says what a run would be, and writes nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cxr_spark.forecast import (
    activation_bytes,
    memory_bytes,
    parameter_count,
    reading_bytes,
    rows_by_class,
    tell,
)
from cxr_spark.labels import CLASSES
from cxr_spark.models import build_model
from cxr_spark.read_plans import RowFile
from cxr_spark.reader import AHEAD_BYTES, WINDOW_BYTES
from cxr_spark.run import Run
from cxr_spark.tables import Warehouse
from cxr_spark.train import plan_run
from cxr_spark.train_options import TrainOptions
from cxr_spark.training_plan import TrainingPlan
from tests.conftest import Finished
from tests.toys import SIZE, toy_plan


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    return toy_plan(tmp_path_factory.mktemp("toy"))


def test_parameters_are_those_of_the_network() -> None:
    assert parameter_count("resnet18") == sum(
        p.numel() for p in build_model("resnet18").parameters()
    )


def test_activations_grow_with_the_images_and_their_area() -> None:
    one = activation_bytes("resnet18", 64, 1)
    assert activation_bytes("resnet18", 64, 4) == 4 * one
    assert activation_bytes("resnet18", 128, 1) == pytest.approx(4 * one, rel=0.01)


def test_parts_and_workers_save_memory_and_an_average_costs_some(plan: TrainingPlan) -> None:
    def needed(**options: object) -> int:
        large = replace(plan, image_size=224, options=replace(plan.options, **options))
        return memory_bytes(large, 11_000_000)

    assert needed(batch_size=64, accumulate=4) < needed(batch_size=64)
    assert needed(batch_size=64, workers=2) < needed(batch_size=64)
    assert needed(ema=0.9) - needed() == 44_000_000


def test_what_is_read_counts_up_to_its_bounds(plan: TrainingPlan) -> None:
    few = reading_bytes(plan)
    assert few == (108 + 4 * 16) * SIZE**2  # all rows of a small split, and four batches
    many = replace(plan, train_files=(RowFile("/a", 10**7),))
    assert reading_bytes(many) == 3 * WINDOW_BYTES + AHEAD_BYTES + 4 * 16 * SIZE**2
    large = replace(many, options=replace(plan.options, batch_size=30_000))
    assert reading_bytes(large) - reading_bytes(many) < AHEAD_BYTES


def test_images_given_out_twice_and_gpus_left_idle_are_told(
    curated: tuple[Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    warehouse, run = Warehouse(curated[0]), Run("train")
    rows = plan_run(warehouse, TrainOptions(), run)[0].train_rows
    workers = next(number for number in (2, 3, 5, 7) if rows % number)
    options = TrainOptions(workers=workers, batch_size=workers)
    tell(warehouse, plan_run(warehouse, options, run)[0], run)
    twice = workers - rows % workers
    assert run.outputs["rows_repeated"] == twice
    told = capsys.readouterr().err
    assert f"an epoch gives out {twice} images twice" in told
    assert "--workers 1 trains on it" in told


def test_rows_are_counted_by_split_and_class(curated: tuple[Path, dict[str, Any]]) -> None:
    warehouse, summary = Warehouse(curated[0]), curated[1]
    plan, _ = plan_run(warehouse, TrainOptions(), Run("train"))
    rows = rows_by_class(warehouse, plan)
    assert sum(map(sum, rows.values())) == summary["counts"]["images"]
    for split, counts in rows.items():
        files = [f for f in warehouse.files("images") if f.partition["split"] == split]
        assert sum(counts) == sum(file.num_rows for file in files) > 0


def test_of_a_share_of_train_only_what_is_learned_from_counts(
    curated: tuple[Path, dict[str, Any]],
) -> None:
    warehouse, run = Warehouse(curated[0]), Run("train")
    plan, _ = plan_run(warehouse, TrainOptions(train_share=0.3), run)
    files = [f for f in warehouse.files("images") if f.partition["split"] == "train"]
    expected = sum(math.ceil(0.3 * file.num_rows) for file in files)
    rows = rows_by_class(warehouse, plan)
    assert plan.train_rows == run.counts["train"] == sum(rows["train"]) == expected
    whole = rows_by_class(warehouse, plan_run(warehouse, TrainOptions(), Run("train"))[0])
    assert (rows["val"], rows["test"]) == (whole["val"], whole["test"])


def test_the_job_tells_it_and_leaves_no_trace(
    curated: tuple[Path, dict[str, Any]], run_job: Callable[..., Finished], tmp_path: Path
) -> None:
    warehouse, models = curated[0], tmp_path / "models"
    before = {path: path.stat().st_mtime_ns for path in warehouse.rglob("*")}
    given = ("--warehouse", warehouse, "--models", models, "--epochs", 3)
    done = run_job("train", *given, "--dry-run")
    assert done.exit_code == 0, done.stderr
    outputs = done.summary["outputs"]
    assert outputs["steps"] == 3 * outputs["steps_per_epoch"]
    assert outputs["rows"]["train"].keys() == set(CLASSES)
    assert outputs["parameters"] == 11_174_857
    assert "MiB each" in done.stderr and "Tuberculosis" in done.stderr
    assert not models.exists()
    assert before == {path: path.stat().st_mtime_ns for path in warehouse.rglob("*")}
