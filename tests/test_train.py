"""Training from a published version: artifact and row are right, wrong input is refused before."""

import contextlib
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from pyspark.sql import Row, SparkSession

from cxr_spark import tables
from cxr_spark.artifact import load_card
from cxr_spark.images import Preprocessing
from cxr_spark.labels import CLASSES
from cxr_spark.metrics import cce
from cxr_spark.models import load_model, predict
from cxr_spark.run import Run
from cxr_spark.tables import NoSuchVersion, NothingPublished, Warehouse
from cxr_spark.train import TrainingFailed, TrainInputError, TrainOptions, plan_run, train
from cxr_spark.training_plan import Fitted
from cxr_spark.training_run import TrainingRun, begin

SIZE = 32
PREPROCESSING = Preprocessing(size=SIZE)
OPTIONS = TrainOptions(epochs=1, workers=2, batch_size=16)


def publish(
    spark: SparkSession,
    warehouse: Warehouse,
    counts: dict[str, int],
    preprocessing: Preprocessing = PREPROCESSING,
) -> int:
    """Append random images, so many a split, as a finished curate run; the version of images."""
    rng = np.random.default_rng(sum(counts.values()))
    side = preprocessing.size
    known = [
        {
            "image_id": f"nih:{split}/{len(counts)}/{number}.png",
            "split": split,
            "label": CLASSES[number % 9],
            "label_index": number % 9,
            "preprocessing": preprocessing.fingerprint(),
            "image_size": side,
            "pixels": bytearray(rng.integers(0, 256, side * side, dtype=np.uint8).tobytes()),
        }
        for split, count in counts.items()
        for number in range(count)
    ]
    schema = tables.schema("images")
    rows = [tuple(row.get(name) for name in schema.names) for row in known]
    version = warehouse.append("images", spark.createDataFrame(rows, schema), "curate-1")
    now = datetime.now(UTC)
    run = {"run_id": "curate-1", "job": "curate", "status": "finished", "exit_code": 0}
    times = {"started_at": now, "finished_at": now}
    warehouse.append_rows("runs", [run | times | {"versions_written": {"images": version}}])
    return version


class Trained(NamedTuple):
    """A finished run."""

    warehouse: Warehouse
    models: Path
    folder: Path
    run: Run
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def trained(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on version 1, when version 2 with more images is the published one."""
    root = tmp_path_factory.mktemp("train")
    warehouse, run = Warehouse(root / "warehouse"), Run("train")
    publish(spark, warehouse, {"train": 45, "val": 30, "test": 9})
    publish(spark, warehouse, {"train": 20})
    options = TrainOptions(epochs=2, workers=2, batch_size=16, images_version=1, seed=7)
    run.quiet = True
    streams = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        folder = train(spark, warehouse, root / "models", options, run)
    told = (stream.getvalue() for stream in streams)
    return Trained(warehouse, root / "models", folder, run, *told)


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "warehouse")


@pytest.fixture
def nothing_left(tmp_path: Path) -> Iterator[Path]:
    """A models folder, and after the test no artifact in it, nor a row in models."""
    models = tmp_path / "models"
    yield models
    assert not models.exists()
    assert not Warehouse(tmp_path / "warehouse").exists("models")


def test_the_card_tells_what_scoring_needs_and_where_the_model_is_from(trained: Trained) -> None:
    card = load_card(trained.folder)
    assert Preprocessing.from_json(card.preprocessing) == PREPROCESSING
    assert card.preprocessing_fingerprint == PREPROCESSING.fingerprint()
    assert (card.architecture, card.classes, card.image_size) == ("resnet18", CLASSES, SIZE)
    assert (card.images_version, card.val_rows, sum(card.train_counts)) == (1, 30, 45)
    assert card.train_priors == pytest.approx([1 / 9] * 9)
    assert card.mean == pytest.approx(0.5, abs=0.01) and card.std == pytest.approx(0.29, abs=0.01)
    assert card.arguments["seed"] == 7 and card.arguments["images_version"] == 1
    assert card.learned_priors == card.train_priors and not card.logit_offset.any()
    assert [epoch["epoch"] for epoch in card.metrics] == [1, 2]
    assert {"val_cce", "val_ece", "val_auroc_covid", "train_cce"} <= card.metrics[0].keys()
    assert card.run_id == trained.run.run_id
    assert {"torch", "petastorm", "cxr_spark"} <= card.packages.keys()
    assert "Not a medical device" in card.limits and card.intended_use


def test_the_artifact_gives_on_val_the_cce_that_its_card_says(
    spark: SparkSession, trained: Trained
) -> None:
    model, card = load_model(trained.folder)
    val = trained.warehouse.read(spark, "images", 0).where("split = 'val'").collect()
    pixels = np.stack([np.frombuffer(row.pixels, np.uint8).reshape(SIZE, SIZE) for row in val])
    labels = [row.label_index for row in val]
    assert cce(predict(model, card, pixels), labels) == pytest.approx(card.val_cce, abs=1e-5)


def test_the_models_row_says_what_the_card_says(spark: SparkSession, trained: Trained) -> None:
    (row,) = trained.warehouse.read(spark, "models").collect()
    card = load_card(trained.folder)
    assert row == Row(
        model_version=card.model_version,
        artifact_path=str(trained.folder),
        artifact_sha256=card.weights_sha256,
        architecture="resnet18",
        image_size=SIZE,
        preprocessing=PREPROCESSING.fingerprint(),
        mean=card.mean,
        std=card.std,
        temperature=card.temperature,
        train_priors=list(card.train_priors),
        images_version=1,
        label_policy="sole",
        arguments={k: str(v) for k, v in card.arguments.items() if v is not None},
        val_cce=card.val_cce,
        run_id=trained.run.run_id,
        created_at=row.created_at,
    )


def test_the_run_names_model_versions_and_counts(trained: Trained) -> None:
    run, version = trained.run, trained.folder.name
    assert run.extra == {"model_version": version, "model": str(trained.models / version)}
    assert (run.versions_read, run.versions_written) == ({"images": 1}, {"models": 1})
    assert run.counts == {"train": 45, "val": 30, "steps": 6, "epochs": 2}
    assert run.outputs["val_cce"] == load_card(trained.folder).val_cce


def test_the_artifact_and_what_tells_of_the_run_are_left_and_stdout_is_silent(
    trained: Trained,
) -> None:
    runs = trained.models / ".runs"
    assert set(trained.models.iterdir()) == {trained.folder, runs}
    names = {path.name for path in trained.folder.iterdir()}
    assert names == {"card.json", "weights.safetensors", "model.onnx"}
    told = {path.name.split(".1")[0] for path in (runs / trained.run.run_id).iterdir()}
    assert told == {"plan.json", "summary.json", "metrics.csv", "events.out.tfevents"}
    assert trained.stdout == ""


def test_of_a_quiet_run_the_ranks_tell_nothing_either(trained: Trained) -> None:
    assert "images/s" not in trained.stderr


def test_a_warehouse_where_nothing_is_published_is_refused(
    spark: SparkSession, warehouse: Warehouse, nothing_left: Path
) -> None:
    with pytest.raises(NothingPublished, match="curate"):
        train(spark, warehouse, nothing_left, OPTIONS, Run("train"))


def test_a_version_that_was_never_published_is_refused(
    spark: SparkSession, warehouse: Warehouse, nothing_left: Path
) -> None:
    publish(spark, warehouse, {"train": 9, "val": 9})
    options = TrainOptions(images_version=5)
    with pytest.raises(NoSuchVersion, match="5 was never published"):
        train(spark, warehouse, nothing_left, options, Run("train"))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train": 9, "test": 9}, "0 images in val, 1 or more"),
        ({"val": 9}, "0 images in train, 2 or more"),
        ({"train": 1, "val": 9}, "1 images in train, 2 or more"),
    ],
)
def test_a_split_with_too_few_images_is_refused(
    spark: SparkSession,
    warehouse: Warehouse,
    nothing_left: Path,
    counts: dict[str, int],
    message: str,
) -> None:
    publish(spark, warehouse, counts)
    with pytest.raises(TrainInputError, match=message):
        train(spark, warehouse, nothing_left, OPTIONS, Run("train"))


def test_images_of_two_preprocessings_are_refused(
    spark: SparkSession, warehouse: Warehouse, nothing_left: Path
) -> None:
    publish(spark, warehouse, {"train": 9, "val": 9})
    publish(spark, warehouse, {"train": 9}, Preprocessing(size=48))
    with pytest.raises(TrainInputError, match=r"several preprocessings, of sizes \[32, 48\]"):
        train(spark, warehouse, nothing_left, OPTIONS, Run("train"))


def test_a_rank_that_fails_ends_the_run_with_its_traceback_and_no_model(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path
) -> None:
    publish(spark, warehouse, {"train": 90, "val": 9})
    paths = [f.path for f in warehouse.files("images") if f.partition["split"] == "train"]
    for path in map(Path, paths):
        content = bytearray(path.read_bytes())
        middle = len(content) // 2  # pixels, which nothing reads before the ranks do
        content[middle : middle + 2000] = b"\xff" * 2000
        path.write_bytes(bytes(content))
    with pytest.raises(TrainingFailed) as raised:
        train(spark, warehouse, tmp_path / "models", OPTIONS, Run("train"))
    message = str(raised.value)
    assert "training failed in rank-" in message and "Traceback (most recent call last)" in message
    assert any(f"ReadFailed: {path}" in message for path in paths)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".runs"]
    assert not warehouse.exists("models")


def test_a_kill_after_artifact_row_or_summary_is_completed_by_resume(
    spark: SparkSession, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(spark, warehouse, {"train": 9, "val": 9})
    models, first = tmp_path / "models", Run("train")
    plan, _ = plan_run(warehouse, OPTIONS, first)
    fitted = Fitted(0.5, 0.2, 1.0, [1] * 9, [1 / 9] * 9, [{"step": 1}], 1, 9, 2.0, 2.1, 0.1)
    unfinished = begin(models, plan, initial=b"weights")
    unfinished.keep_fitted(b"weights", b"onnx", fitted)

    def killed(*arguments: object, **options: object) -> int:
        raise KeyboardInterrupt

    for owner, step in ((Warehouse, "append_rows"), (TrainingRun, "finish"), (TrainingRun, "tidy")):
        run = Run("train")
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(owner, step, killed)
            train(spark, warehouse, models, OPTIONS, run, resume=True)
        run.release()
    (saved,) = models.glob("[!.]*")
    for _ in range(2):  # it has finished, and tells its summary again
        run = Run("train")
        assert train(spark, warehouse, models, OPTIONS, run, resume=True) == saved
        assert run.extra["model_version"] == saved.name
        run.release()
    assert list(models.glob("[!.]*")) == [saved]
    (row,) = warehouse.read(spark, "models").collect()
    assert (row.model_version, row.run_id) == (saved.name, first.run_id)
    assert {path.name for path in unfinished.folder.iterdir()} == {"plan.json", "summary.json"}
