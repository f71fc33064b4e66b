"""The training stage: a version of images in, ranks by TorchDistributor, a model artifact out."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from cxr_spark import training_run
from cxr_spark.artifact import load_card, save_artifact
from cxr_spark.delta import DataFile
from cxr_spark.distribute import TrainingFailed, run_ranks
from cxr_spark.images import FITS, Preprocessing
from cxr_spark.labels import LABEL_POLICIES
from cxr_spark.model_card import card_of, models_row, package_versions
from cxr_spark.read_plans import RowFile, first_rows
from cxr_spark.run import Run
from cxr_spark.tables import Warehouse
from cxr_spark.train_options import TrainInputError, TrainOptions
from cxr_spark.training_plan import TrainingPlan
from cxr_spark.training_run import TrainingRun


def train(
    spark: SparkSession,
    warehouse: Warehouse,
    models: str | Path,
    options: TrainOptions,
    run: Run,
    *,
    resume: bool = False,
) -> Path:
    """Train a model on a version of images, save its artifact and add its row to models.

    Args:
        spark: the session.
        warehouse: where images is.
        models: folder of the artifacts; in a cluster, one that driver and executors share.
        options: see TrainOptions.
        run: takes counts, versions and the artifact; a SIGTERM that it waits for, and the end of
            its time, end the training.
        resume: go on with the newest unfinished run, or tell one's summary again; see find_run.

    Returns:
        The artifact's folder, `<models>/<model_version>/`.

    Raises:
        TrainInputError, NothingPublished, NoSuchVersion, WeightsError: nothing is written.
        DifferentRun: the one to go on with was asked for something else.
        Busy: another process is at work on the run.
        TrainingFailed: with the traceback of the rank that failed.
        Stopped: by SIGTERM, at a checkpoint.
    """
    plan, initial = plan_run(warehouse, options, run)
    found = training_run.find_run(models, plan) if resume else None
    training = found or training_run.begin(models, plan, initial)
    run.lock(training.folder.parent, training.folder.name)
    if (summary := training.summary) is not None:
        training.tidy()
        run.say(f"{training.folder.name} has finished before; this is its summary")
        _tell(run, summary)
        return Path(summary["extra"]["model"])
    run.say(f"{'going on with' if found else 'begun:'} {training.folder}")
    if not training.has_trained:
        _run_ranks(spark, training, run)
    return _publish(warehouse, Path(models), training, run)


def plan_run(
    warehouse: Warehouse, options: TrainOptions, run: Run
) -> tuple[TrainingPlan, bytes | None]:
    """What a run is asked for, checked; and the weights that it begins with, where a file is named.

    Raises:
        TrainInputError, NothingPublished, NoSuchVersion, WeightsError: see `train`.
    """
    asked = options.images_version
    version = warehouse.current("images") if asked is None else asked
    label_policy = warehouse.published_with(version).arguments.get("label_policy")
    preprocessing = _preprocessing(warehouse, version)
    files = warehouse.files("images", version)
    train_files = first_rows(_of_split(files, "train"), options.train_share)
    val_files = _of_split(files, "val")
    for split, given, needed in (("train", train_files, options.workers), ("val", val_files, 1)):
        rows = sum(file.num_rows for file in given)
        if rows < needed:
            raise TrainInputError(
                f"images version {version} has {rows} images in {split}, {needed} or more are "
                "needed: add images to the sources and curate them"
            )
    initial = _initial_weights(options)
    plan = TrainingPlan(
        options=replace(options, images_version=version),
        epochs_given=options.epochs is not None,
        image_size=preprocessing.size,
        train_files=train_files,
        val_files=val_files,
        preprocessing=preprocessing.to_json(),
        label_policy=label_policy or LABEL_POLICIES[0],
        images_sha256=_hash_of(files, warehouse.path("images")),
        weights_sha256=None if initial is None else hashlib.sha256(initial).hexdigest(),
        run_id=run.run_id,
        created_at=datetime.now(UTC).isoformat(),
        packages=package_versions(),
    ).for_time(run.max_runtime is not None)
    run.versions_read["images"] = version
    run.counts |= {"train": plan.train_rows, "val": plan.val_rows}
    return plan, initial


def _of_split(files: Sequence[DataFile], split: str) -> tuple[RowFile, ...]:
    return tuple(RowFile(f.path, f.num_rows) for f in files if f.partition["split"] == split)


def _hash_of(files: Sequence[DataFile], table: str) -> str:
    names = sorted([file.path.removeprefix(table), file.num_rows] for file in files)
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _preprocessing(warehouse: Warehouse, version: int) -> Preprocessing:
    """The one preprocessing of a version of images; the card tells it in full."""
    kinds = warehouse.read_arrow("images", ["preprocessing", "image_size"], version)
    found = kinds.group_by(["image_size", "preprocessing"]).aggregate([]).to_pylist()
    if len(found) > 1:
        raise TrainInputError(
            f"images version {version} holds images of several preprocessings, of sizes "
            f"{sorted(kind['image_size'] for kind in found)}: curate the sources anew at one size"
        )
    for kind in found:
        for fit in FITS:
            known = Preprocessing(size=kind["image_size"], fit=fit)
            if known.fingerprint() == kind["preprocessing"]:
                return known
    raise TrainInputError(
        f"images version {version} has images of {found}, a preprocessing that this version of "
        "cxr_spark does not know: curate the sources with this version"
    )


def _initial_weights(options: TrainOptions) -> bytes | None:
    if options.weights is None:
        return None
    # Importing torch takes seconds, and a driver without a file of weights needs none of it.
    from cxr_spark.pretrained import read_weights

    return read_weights(options.weights, options.arch)


def _run_ranks(spark: SparkSession, training: TrainingRun, run: Run) -> None:
    """Have the ranks train to the end, or to the checkpoint at which SIGTERM stops them."""
    plan = training.plan.for_time(run.max_runtime is not None)
    options = plan.options
    steps = f"{plan.steps:,} steps" if plan.steps else "as many steps as the time allows,"
    run.say(
        f"{options.arch} on images version {options.images_version}: {plan.train_rows:,} train and "
        f"{plan.val_rows:,} val images of {plan.image_size} px, {steps} of up to "
        f"{options.batch_size} images, {options.workers} workers"
    )
    if plan.repeated_rows:
        run.say(f"an epoch gives out {plan.repeated_rows} images twice, for equal batches")
    deadline = None if run.max_runtime is None else time.time() + run.seconds_left
    with run.safe_points():  # the ranks keep to the time themselves
        run_ranks(
            spark,
            training,
            options.workers,
            deadline,
            lambda: run.has_sigterm,
            quiet=run.quiet,
        )
        if not training.has_trained:
            run.say(f"stopped at a checkpoint in {training.folder}: --resume goes on")
            if run.has_sigterm:
                run.end_if_stopped()
            raise TrainingFailed(
                "the ranks were stopped by a SIGTERM that the driver didn't get; --resume goes on"
            )


def _publish(warehouse: Warehouse, models: Path, training: TrainingRun, run: Run) -> Path:
    """Artifact, models row and summary; done again after a kill, they come out the same."""
    weights, onnx, fitted = training.fitted()
    folder = save_artifact(models, card_of(training.plan, fitted), weights, onnx)
    card = load_card(folder)
    version = warehouse.append_rows("models", [models_row(folder, card)], sequence=0)
    last = fitted.metrics[-1]
    summary = {
        "counts": run.counts | {"epochs": len(fitted.metrics), "steps": last["step"]},
        "versions_written": {"models": version},
        "outputs": {
            "val_cce": card.val_cce,
            "val_ece": card.val_ece,
            "temperature": card.temperature,
            "metrics": str(training.folder / training_run.METRICS_FILE),
        },
        "extra": {"model_version": card.model_version, "model": str(folder)},
    }
    training.finish(summary)
    _tell(run, summary)
    run.say(
        f"{folder}: val CCE {card.val_cce:.3f} ({card.val_cce_uncalibrated:.3f} before calibration "
        f"with temperature {card.temperature:.2f}), weights of epoch {card.kept_epoch}"
    )
    return folder


def _tell(run: Run, summary: dict[str, Any]) -> None:
    run.counts |= summary["counts"]
    run.versions_written |= summary["versions_written"]
    run.outputs |= summary["outputs"]
    run.extra |= summary["extra"]
