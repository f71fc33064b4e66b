"""The training stage: a version of images in, ranks by TorchDistributor, a model artifact out."""

import contextlib
import logging
import os
import re
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.ml.torch.distributor import TorchDistributor
from pyspark.sql import SparkSession

import cxr_spark
from cxr_spark.artifact import Card, load_card, save_artifact
from cxr_spark.fit import FitPlan, Fitted, read_fitted, run_rank
from cxr_spark.images import FITS, Preprocessing
from cxr_spark.labels import CLASSES, LABEL_POLICIES
from cxr_spark.models import BACKBONES
from cxr_spark.ranks import first_failure
from cxr_spark.reader import RowFile
from cxr_spark.tables import Warehouse

PACKAGES = ("torch", "torchvision", "petastorm", "pyarrow", "numpy", "pyspark", "deltalake")
INTENDED_USE = (
    "Research and development on chest radiographs: the probabilities of nine classes for one "
    "frontal image, to sort and search archives and to compare methods."
)
LIMITS = (
    "Not a medical device and not evaluated for diagnosis. Labels of the public sources are mined "
    "from reports or from whole collections and are partly wrong. Covid and Tuberculosis come "
    "from one collection each, so that a model can tell them by their source: look at the "
    "metrics by source and beside the source-only baseline. One class an image: several findings "
    "at once, other findings, lateral views and children outside the Pneumonia source are not "
    "covered. Probabilities are calibrated on val, at the class shares of the train split."
)


class TrainInputError(ValueError):
    """Options or images that no model can be trained with; nothing has been written."""


class TrainingFailed(RuntimeError):
    """A rank raised or was killed; the message holds its traceback."""


class Run(Protocol):
    """What the stage tells of itself; job.Run is one."""

    run_id: str
    counts: dict[str, int | float]
    versions_read: dict[str, int]
    versions_written: dict[str, int]
    outputs: dict[str, Any]
    extra: dict[str, Any]

    def say(self, text: str) -> None:
        """A line of words."""


def _option(default: Any, words: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": words, "type": type(default), **more})


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training run; command line, card and runs row are derived from them."""

    arch: str = _option("resnet18", "torchvision backbone", choices=list(BACKBONES))
    epochs: int = _option(12, "passes over the train split")
    workers: int = _option(2, "ranks, each a process; in local mode they share the cores")
    batch_size: int = _option(32, "images of a step, over all workers together")
    images_version: int | None = _option(
        None, "version of images to train on; default: the published one", type=int
    )
    seed: int = _option(0, "of weights, order and augmentation")
    learning_rate: float = _option(2e-3, "the highest of the schedule: warm-up, then a cosine")

    def __post_init__(self) -> None:
        least = {"epochs": 1, "workers": 1, "batch_size": self.workers, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise TrainInputError(
                    f"{name} is {getattr(self, name)}, it must be at least {value}"
                    + (", one image a worker" if name == "batch_size" else "")
                )
        if not 0 < self.learning_rate < 1:
            raise TrainInputError(
                f"learning_rate is {self.learning_rate}, it must be within 0 to 1"
            )

    @staticmethod
    def add_to(parser: ArgumentParser) -> None:
        """Add an option for every field to a command line."""
        for option in fields(TrainOptions):
            known = dict(option.metadata)
            default = "" if option.default is None else f" (default {option.default})"
            parser.add_argument(
                f"--{option.name.replace('_', '-')}",
                default=option.default,
                **known | {"help": known["help"] + default},
            )

    @classmethod
    def of(cls, arguments: Namespace) -> Self:
        """The options of a parsed command line.

        Raises:
            TrainInputError: a value that cannot be.
        """
        return cls(**{option.name: getattr(arguments, option.name) for option in fields(cls)})


class Source(NamedTuple):
    """The images to train on."""

    version: int
    label_policy: str
    preprocessing: Preprocessing
    train_files: tuple[RowFile, ...]
    val_files: tuple[RowFile, ...]


def train(
    spark: SparkSession, warehouse: Warehouse, models: str | Path, options: TrainOptions, run: Run
) -> Path:
    """Train a model on a version of images, save its artifact and add its row to models.

    Args:
        spark: the session.
        warehouse: where images is.
        models: folder of the artifacts; in a cluster, one that driver and executors share.
        options: see TrainOptions.
        run: takes counts, versions and the artifact.

    Returns:
        The artifact's folder, `<models>/<model_version>/`.

    Raises:
        TrainInputError, NothingPublished, NoSuchVersion: before anything is written.
        TrainingFailed: with the traceback of the rank that failed.
    """
    source = _source(spark, warehouse, options)
    run.versions_read["images"] = source.version
    plan = FitPlan(
        architecture=options.arch,
        image_size=source.preprocessing.size,
        train_files=source.train_files,
        val_files=source.val_files,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    val_rows = sum(file.num_rows for file in source.val_files)
    run.counts |= {"train": plan.train_rows, "val": val_rows, "steps": plan.steps}
    run.say(
        f"{options.arch} on images version {source.version}: {plan.train_rows:,} train and "
        f"{val_rows:,} val images of {plan.image_size} px, {plan.steps:,} steps of up to "
        f"{options.batch_size} images, {options.workers} workers"
    )
    weights, fitted = _run_ranks(spark, plan, options.workers, Path(models).absolute(), run.run_id)
    card = _card(source, options, fitted, run.run_id)
    folder = save_artifact(models, card, weights)
    card = load_card(folder)
    run.versions_written["models"] = warehouse.append_rows("models", [_models_row(folder, card)])
    run.extra |= {"model_version": card.model_version, "model": str(folder)}
    run.outputs |= {"val_cce": card.val_cce, "temperature": card.temperature}
    run.say(
        f"{folder}: val CCE {card.val_cce:.3f} ({card.val_cce_uncalibrated:.3f} before calibration "
        f"with temperature {card.temperature:.2f}), weights of epoch {card.kept_epoch}"
    )
    return folder


def _source(spark: SparkSession, warehouse: Warehouse, options: TrainOptions) -> Source:
    """The images to train on, checked."""
    asked = options.images_version
    version = warehouse.current("images") if asked is None else asked
    curated = warehouse.published_with(version)
    kinds = warehouse.read(spark, "images", version).select("preprocessing", "image_size")
    found = kinds.distinct().sort("image_size").collect()
    if len(found) > 1:
        raise TrainInputError(
            f"images version {version} holds images of several preprocessings, of sizes "
            f"{[row.image_size for row in found]}: curate the sources anew at one size"
        )
    files: dict[str | None, list[RowFile]] = {"train": [], "val": []}
    for file in warehouse.files("images", version):
        files.setdefault(file.partition["split"], []).append(RowFile(file.path, file.num_rows))
    least = {"train": options.workers, "val": 1}
    for split, needed in least.items():
        rows = sum(file.num_rows for file in files[split])
        if rows < needed:
            raise TrainInputError(
                f"images version {version} has {rows} images in {split}, {needed} or more are "
                "needed: add images to the sources and curate them"
            )
    preprocessing = _preprocessing(found[0].preprocessing, found[0].image_size)
    label_policy = curated.arguments.get("label_policy", LABEL_POLICIES[0])
    return Source(version, label_policy, preprocessing, tuple(files["train"]), tuple(files["val"]))


def _preprocessing(fingerprint: str, image_size: int) -> Preprocessing:
    """The preprocessing that has a fingerprint: the card tells it in full."""
    for fit in FITS:
        known = Preprocessing(size=image_size, fit=fit)
        if known.fingerprint() == fingerprint:
            return known
    raise TrainInputError(
        f"images of {image_size} px have preprocessing {fingerprint}, which this version of "
        "cxr_spark does not know: curate the sources with this version"
    )


def _run_ranks(
    spark: SparkSession, plan: FitPlan, workers: int, models: Path, run_id: str
) -> tuple[bytes, Fitted]:
    """Weights and figures of a run, by a folder of its own beside the artifacts."""
    master = spark.conf.get("spark.master", "")
    is_local = re.fullmatch(r"local(\[.*\])?", master or "") is not None
    folder = models / f".{run_id}"
    folder.mkdir(parents=True)
    try:
        # What ranks print comes through the driver's stdout, which is for results.
        with _environment(_rank_environment(is_local)), contextlib.redirect_stdout(sys.stderr):
            gpus = int(spark.conf.get("spark.task.resource.gpu.amount", "0") or 0)
            distributor = TorchDistributor(workers, is_local, use_gpu=not is_local and gpus > 0)
            distributor.logger.setLevel(logging.WARNING)
            distributor.run(run_rank, plan, str(folder))
        return read_fitted(folder)
    except (RuntimeError, Py4JError, PySparkException) as error:
        failure = first_failure(folder) or (
            "a rank that left no traceback: it was killed, perhaps for want of memory; what "
            "torchrun said of it is above"
        )
        raise TrainingFailed(f"training failed in {failure}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rank_environment(is_local: bool) -> dict[str, str]:
    """What ranks inherit in local mode: our package, lines as they come, the loopback only."""
    package = str(Path(cxr_spark.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    return environment | ({"GLOO_SOCKET_IFNAME": "lo"} if is_local else {})


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _card(source: Source, options: TrainOptions, fitted: Fitted, run_id: str) -> Card:
    total = sum(fitted.train_counts)
    return Card(
        architecture=options.arch,
        classes=CLASSES,
        image_size=source.preprocessing.size,
        preprocessing=source.preprocessing.to_json(),
        preprocessing_fingerprint=source.preprocessing.fingerprint(),
        mean=fitted.mean,
        std=fitted.std,
        temperature=fitted.temperature,
        train_counts=tuple(fitted.train_counts),
        train_priors=tuple(count / total for count in fitted.train_counts),
        images_version=source.version,
        label_policy=source.label_policy,
        arguments=asdict(options),
        metrics=tuple(fitted.metrics),
        kept_epoch=fitted.kept_epoch,
        val_rows=fitted.val_rows,
        val_cce=fitted.val_cce,
        val_cce_uncalibrated=fitted.val_cce_uncalibrated,
        packages={name: metadata.version(name) for name in PACKAGES}
        | {"cxr_spark": cxr_spark.__version__},
        run_id=run_id,
        created_at=datetime.now(UTC).isoformat(),
        intended_use=INTENDED_USE,
        limits=LIMITS,
    )


def _models_row(folder: Path, card: Card) -> dict[str, Any]:
    return {
        "model_version": card.model_version,
        "artifact_path": str(folder),
        "artifact_sha256": card.weights_sha256,
        "architecture": card.architecture,
        "image_size": card.image_size,
        "preprocessing": card.preprocessing_fingerprint,
        "mean": card.mean,
        "std": card.std,
        "temperature": card.temperature,
        "train_priors": list(card.train_priors),
        "images_version": card.images_version,
        "label_policy": card.label_policy,
        "arguments": {k: str(v) for k, v in card.arguments.items() if v is not None},
        "val_cce": card.val_cce,
        "run_id": card.run_id,
        "created_at": datetime.fromisoformat(card.created_at),
    }
