"""What a training run was asked for and what its ranks are given; needs neither torch nor Spark."""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from cxr_spark.read_plans import RowFile, repeated_rows
from cxr_spark.train_options import DEFAULT_EPOCHS, TrainOptions


@dataclass(frozen=True)
class TrainingPlan:
    """A training run before it begins; plan.json of its folder.

    Attributes:
        options: as they were understood: the version of images named, and the epochs, unless they
            are as many as fit into a given time.
        epochs_given: whether the epochs were asked for; else they follow from whether a time is
            given, which may change where the run goes on.
        image_size: side of the images, pixels.
        train_files, val_files: the files of the two splits.
        preprocessing: how files became pixels, as images.Preprocessing.to_json gives it.
        label_policy: of the curate run.
        images_sha256: see artifact.Card.
        weights_sha256: of the file that `options.weights` names.
        run_id: of the run that began the training.
        created_at: when that was, ISO 8601, UTC.
        packages: versions of what trains.
    """

    options: TrainOptions
    image_size: int
    train_files: tuple[RowFile, ...]
    val_files: tuple[RowFile, ...]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    label_policy: str = ""
    images_sha256: str = ""
    weights_sha256: str | None = None
    run_id: str = ""
    created_at: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    epochs_given: bool = True

    def for_time(self, is_limited: bool) -> Self:
        """The plan with the epochs that it comes to where a time is given, or none."""
        if self.epochs_given:
            return self
        epochs = None if is_limited else DEFAULT_EPOCHS
        return replace(self, options=replace(self.options, epochs=epochs))

    @property
    def train_rows(self) -> int:
        """Images of the train split."""
        return sum(file.num_rows for file in self.train_files)

    @property
    def val_rows(self) -> int:
        """Images of the val split."""
        return sum(file.num_rows for file in self.val_files)

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps of an epoch."""
        return math.ceil(self.train_rows / self.options.batch_size)

    @property
    def steps(self) -> int | None:
        """Optimiser steps of all epochs; None where time decides."""
        epochs = self.options.epochs
        return None if epochs is None else epochs * self.epoch_steps

    @property
    def repeated_rows(self) -> int:
        """Images of train that an epoch gives out twice, so that all ranks have equal batches."""
        options = self.options
        return repeated_rows(self.train_rows, options.batch_size, options.workers)

    def differences(self, other: "TrainingPlan") -> list[str]:
        """In what another plan asks for something else, as `name: theirs here, ours there`."""
        ours, theirs = asdict(self.options), asdict(other.options)
        for plan, values in ((self, ours), (other, theirs)):
            values["images"] = plan.images_sha256[:12]
            values["content of the weights"] = plan.weights_sha256
        if not (self.epochs_given or other.epochs_given):
            ours["epochs"] = theirs["epochs"]
        return [
            f"{name} was {ours[name]} and is now {theirs[name]}"
            for name in ours
            if ours[name] != theirs[name]
        ]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same plan of."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The plan of a parsed plan.json.

        Raises:
            TypeError: it is another version's.
        """
        files = {
            name: tuple(RowFile(*file) for file in content[name])
            for name in ("train_files", "val_files")
        }
        options = TrainOptions(**content["options"])
        return cls(**content | files | {"options": options})


@dataclass(frozen=True)
class Fitted:
    """What a run found, weights apart; the names are those of artifact.Card."""

    mean: float
    std: float
    temperature: float
    train_counts: list[int]
    learned_priors: list[float]
    metrics: list[dict[str, float | None]]
    kept_epoch: int
    val_rows: int
    val_cce: float
    val_cce_uncalibrated: float
    val_ece: float
