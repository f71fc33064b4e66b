"""Fits a model to the images of Parquet files: an epoch, an exact evaluation, the whole run.

Runs in one process, or in each of the ranks that TorchDistributor starts (`run_rank`). No Spark.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from cxr_spark.augment import augment
from cxr_spark.calibration import fit_temperature, softmax
from cxr_spark.labels import CLASSES
from cxr_spark.metrics import accuracy, cce
from cxr_spark.models import build_model, serialise, standardise
from cxr_spark.ranks import (
    Place,
    average_buffers,
    joined,
    replica,
    rows_of_all_ranks,
    sum_over_ranks,
)
from cxr_spark.reader import ReadPlan, RowFile, plan_evaluation, plan_training, read_batches

WEIGHT_DECAY = 0.05
WARM_UP = 0.08  # of all steps
LABEL_SMOOTHING = 0.05
GRADIENT_NORM = 2.0
EVALUATION_BATCH = 64  # images, on one rank
PROGRESS_SECONDS = 10.0

WEIGHTS_FILE = "weights.safetensors"
FITTED_FILE = "fitted.json"

Inputs = Iterable[tuple[Tensor, Tensor]]
"""Standardised images, (B, 1, S, S) float32, and their classes, (B,) int64, on the device."""


class Diverged(RuntimeError):
    """The training loss is infinite or no number any more."""


@dataclass(frozen=True)
class FitPlan:
    """What all ranks are given.

    Attributes:
        architecture: a name in models.BACKBONES.
        image_size: side of the images, pixels.
        train_files, val_files: the files of the two splits.
        epochs: passes over the train split.
        batch_size: images of a step, over all ranks.
        learning_rate: the highest, at the end of the warm-up.
        seed: of the weights, the order of the images and the augmentation.
    """

    architecture: str
    image_size: int
    train_files: tuple[RowFile, ...]
    val_files: tuple[RowFile, ...]
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int

    @property
    def train_rows(self) -> int:
        """Images of the train split."""
        return sum(file.num_rows for file in self.train_files)

    @property
    def steps(self) -> int:
        """Optimiser steps of all epochs."""
        return self.epochs * math.ceil(self.train_rows / self.batch_size)


@dataclass(frozen=True)
class Fitted:
    """What a run found, weights apart; the names are those of artifact.Card."""

    mean: float
    std: float
    temperature: float
    train_counts: list[int]
    metrics: list[dict[str, float]]
    kept_epoch: int
    val_rows: int
    val_cce: float
    val_cce_uncalibrated: float


class Statistics(NamedTuple):
    """Mean and standard deviation of pixels / 255, and the number of images of each class."""

    mean: float
    std: float
    counts: list[int]


class Logits(NamedTuple):
    """What a model gives on a whole split: (N, 9) float32 logits, (N,) int64 true classes."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    def cce(self, temperature: float = 1.0) -> float:
        """Categorical cross-entropy, nats."""
        return cce(softmax(self.logits, temperature), self.labels)


class Kept(NamedTuple):
    """The epoch whose weights stay, so far."""

    epoch: int
    val: Logits
    weights: dict[str, Tensor]


def run_rank(plan: FitPlan, folder: str) -> None:
    """One rank of a run; rank 0 leaves weights and figures in the folder, see `read_fitted`.

    Nothing is returned: TorchDistributor lets the ranks write their results over each other.

    Args:
        plan: the same on all ranks.
        folder: for results and tracebacks; every rank and the driver see it.
    """
    with joined(folder) as place:
        model, fitted = fit(plan, place, lambda line: print(line, file=sys.stderr, flush=True))
        if place.rank == 0:
            (Path(folder) / WEIGHTS_FILE).write_bytes(serialise(model))
            (Path(folder) / FITTED_FILE).write_text(json.dumps(asdict(fitted)), "utf-8")


def read_fitted(folder: str | Path) -> tuple[bytes, Fitted]:
    """Weights, as the content of a safetensors file, and figures of a run that has ended."""
    figures = json.loads((Path(folder) / FITTED_FILE).read_text("utf-8"))
    return (Path(folder) / WEIGHTS_FILE).read_bytes(), Fitted(**figures)


def fit(plan: FitPlan, place: Place, say: Callable[[str], None]) -> tuple[nn.Module, Fitted]:
    """Train a model, keep the weights of the epoch with the lowest val CCE, and calibrate it.

    Args:
        plan: the same on all ranks.
        place: this rank; where there are several, torch's process group is up.
        say: takes lines of progress; called on rank 0 only.

    Returns:
        The model, the same on all ranks, and what there is to know about it.

    Raises:
        Diverged: the loss became infinite or no number.
        ReadFailed, ReaderInputError: see the reader.
    """
    torch.manual_seed(plan.seed)
    statistics = train_statistics(plan, place)
    model = build_model(plan.architecture).to(memory_format=torch.channels_last).to(place.device)
    parallel = replica(model, place)
    optimizer = make_optimizer(model, plan.learning_rate)
    schedule = LambdaLR(optimizer, lambda step: learning_rate_share(step, plan.steps))
    progress = Progress(plan, place, say)
    metrics: list[dict[str, float]] = []
    kept: Kept | None = None
    for epoch in range(1, plan.epochs + 1):
        inputs = training_inputs(plan, epoch, place, statistics)
        train_cce = train_one_epoch(parallel, inputs, optimizer, schedule, place, progress)
        average_buffers(model, place)
        val = evaluate(model, plan.val_files, plan.image_size, place, statistics)
        metrics.append(
            {
                "epoch": epoch,
                "train_cce": train_cce,
                "val_cce": val.cce(),
                "val_accuracy": accuracy(softmax(val.logits), val.labels),
                "seconds": round(progress.seconds, 3),
            }
        )
        progress.epoch_ended(metrics[-1])
        # At a high learning rate val CCE may spike and recover, so nothing ends the run early.
        if kept is None or val.cce() < kept.val.cce():
            kept = Kept(epoch, val, {k: v.clone() for k, v in model.state_dict().items()})
    assert kept is not None
    model.load_state_dict(kept.weights)
    return model, _fitted(statistics, metrics, kept)


def train_one_epoch(
    model: nn.Module,
    inputs: Inputs,
    optimizer: Optimizer,
    schedule: LRScheduler,
    place: Place,
    progress: "Progress",
) -> float:
    """One pass over the train split.

    Returns:
        CCE over the rows of all ranks, each as it was trained on (augmented, by the weights of
        its step), without label smoothing; nats.

    Raises:
        Diverged: it is infinite or no number.
    """
    model.train()
    total = torch.zeros(2, dtype=torch.float64, device=place.device)
    for images, labels in inputs:
        logits = model(images)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING).backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        total[0] += F.cross_entropy(logits.detach(), labels, reduction="sum")
        total[1] += len(labels)
        progress.stepped(total)
    loss, rows = sum_over_ranks(total, place).tolist()
    if not math.isfinite(loss):
        raise Diverged(
            f"the training loss is {loss} in epoch {progress.epoch}: try a lower learning rate"
        )
    return loss / rows


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    files: Sequence[RowFile],
    image_size: int,
    place: Place,
    statistics: Statistics,
) -> Logits:
    """The model's logits on every row of a split once, in the order of the files, on all ranks.

    Batches are the same whatever the number of ranks, so the logits are, too.
    """
    model.eval()
    plans = [
        plan_evaluation(files, batch_size=EVALUATION_BATCH, rank=rank, world=place.world)
        for rank in range(place.world)
    ]
    logits = [torch.empty(0, len(CLASSES), device=place.device)]
    labels = [torch.empty(0, dtype=torch.int64, device=place.device)]
    for images, classes in _inputs(plans[place.rank], image_size, place, statistics):
        logits.append(model(images).float())
        labels.append(classes)
    counts = [sum(plan.batch_sizes) for plan in plans]
    all_logits = rows_of_all_ranks(torch.cat(logits), counts, place)
    all_labels = rows_of_all_ranks(torch.cat(labels), counts, place)
    return Logits(all_logits.cpu().numpy(), all_labels.cpu().numpy())


def train_statistics(plan: FitPlan, place: Place) -> Statistics:
    """Statistics of the whole train split, exact: from the counts of the 256 grey values."""
    rows = plan_evaluation(
        plan.train_files, batch_size=EVALUATION_BATCH, rank=place.rank, world=place.world
    )
    counts = np.zeros(256 + len(CLASSES), np.int64)
    for batch in read_batches(rows, image_size=plan.image_size):
        counts[:256] += np.bincount(batch.pixels.ravel(), minlength=256)
        counts[256:] += np.bincount(batch.labels, minlength=len(CLASSES))
    totals = sum_over_ranks(torch.from_numpy(counts).to(place.device), place).cpu().numpy()
    values, shares = np.arange(256) / 255, totals[:256] / totals[:256].sum()
    mean = float(shares @ values)
    return Statistics(mean, float(np.sqrt(shares @ (values - mean) ** 2)), totals[256:].tolist())


def training_inputs(
    plan: FitPlan, epoch: int, place: Place, statistics: Statistics
) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented inputs of an epoch on this rank."""
    rows = plan_training(
        plan.train_files,
        batch_size=plan.batch_size,
        seed=plan.seed,
        epoch=epoch,
        rank=place.rank,
        world=place.world,
    )
    own_seed = np.random.SeedSequence((plan.seed, epoch, place.rank)).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(own_seed))
    for images, labels in _inputs(rows, plan.image_size, place, statistics):
        changed = augment(images, generator)
        yield changed.contiguous(memory_format=torch.channels_last), labels


def make_optimizer(model: nn.Module, learning_rate: float) -> AdamW:
    """AdamW that leaves norms and biases, which have one dimension, undecayed."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_share(step: int, steps: int) -> float:
    """The share of the highest learning rate at a step: a linear warm-up, then a cosine to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    return (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up))) / 2


class Progress:
    """Lines on how far training is, from rank 0: now and then, and after each epoch."""

    def __init__(self, plan: FitPlan, place: Place, say: Callable[[str], None]) -> None:
        self.plan, self.place, self.say = plan, place, say
        self.epoch, self.step = 1, 0
        self.began = self.spoke_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since training began."""
        return time.monotonic() - self.began

    def stepped(self, total: Tensor) -> None:
        """After a step; the total is the epoch's loss and rows on this rank."""
        self.step += 1
        if self.place.rank or time.monotonic() - self.spoke_at < PROGRESS_SECONDS:
            return
        self.spoke_at = time.monotonic()
        loss, rows = total.tolist()
        self._say(f"loss {loss / rows:.3f}")

    def epoch_ended(self, metrics: dict[str, float]) -> None:
        """After an epoch and its evaluation."""
        if self.place.rank == 0:
            figures = ("train_cce", "val_cce", "val_accuracy")
            self._say(", ".join(f"{name} {metrics[name]:.3f}" for name in figures))
        self.epoch += 1

    def _say(self, figures: str) -> None:
        plan, done = self.plan, self.step / self.plan.steps
        rate = done * plan.epochs * plan.train_rows / self.seconds
        self.say(
            f"epoch {self.epoch} of {plan.epochs}, step {self.step:,} of {plan.steps:,}, "
            f"{rate:.0f} images/s, {figures}, {self.seconds * (1 - done) / done:.0f} s left"
        )


def _inputs(
    rows: ReadPlan, image_size: int, place: Place, statistics: Statistics
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in read_batches(rows, image_size=image_size):
        pixels = torch.from_numpy(batch.pixels).to(place.device)
        images = standardise(pixels, statistics.mean, statistics.std)
        labels = torch.from_numpy(batch.labels).to(place.device)
        yield images.contiguous(memory_format=torch.channels_last), labels


def _fitted(statistics: Statistics, metrics: list[dict[str, float]], kept: Kept) -> Fitted:
    temperature = fit_temperature(kept.val.logits, kept.val.labels)
    return Fitted(
        mean=statistics.mean,
        std=statistics.std,
        temperature=temperature,
        train_counts=statistics.counts,
        metrics=metrics,
        kept_epoch=kept.epoch,
        val_rows=len(kept.val.labels),
        val_cce=kept.val.cce(temperature),
        val_cce_uncalibrated=kept.val.cce(),
    )
