"""An exact pass over a split, and the figures that it gives."""

import math
import time
from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from cxr_spark import calibration
from cxr_spark.labels import CLASS_COLUMNS, CLASSES
from cxr_spark.metrics import accuracy, auroc_per_class, cce, ece
from cxr_spark.models import standardise
from cxr_spark.ranks import Place, rows_of_all_ranks, sum_over_ranks
from cxr_spark.read_plans import ReadPlan, RowFile, plan_evaluation
from cxr_spark.reader import read_batches

EVALUATION_BATCH = 64  # images, on one rank


class Statistics(NamedTuple):
    """Mean and standard deviation of pixels / 255, and the number of images of each class."""

    mean: float
    std: float
    counts: list[int]


class Logits(NamedTuple):
    """What a model gives on a whole split: (N, 9) float32 logits, (N,) int64 true classes."""

    logits: NDArray[np.float32]
    labels: NDArray[np.int64]

    def probabilities(self, offset: ArrayLike, temperature: float = 1.0) -> NDArray[np.float64]:
        """(N, 9), corrected and calibrated."""
        return calibration.probabilities(self.logits, temperature, offset)

    def cce(self, offset: ArrayLike) -> float:
        """Categorical cross-entropy of the corrected probabilities, before calibration; nats."""
        return cce(self.probabilities(offset), self.labels)

    def figures(self, offset: ArrayLike) -> dict[str, float | None]:
        """Figures of the corrected probabilities, before calibration; None where undefined."""
        probabilities = self.probabilities(offset)
        areas = auroc_per_class(probabilities, self.labels)
        return {
            "val_cce": self.cce(offset),
            "val_accuracy": accuracy(probabilities, self.labels),
            "val_ece": ece(probabilities, self.labels),
        } | {
            f"val_auroc_{name}": None if math.isnan(area) else float(area)
            for name, area in zip(CLASS_COLUMNS, areas, strict=True)
        }


def train_statistics(files: Sequence[RowFile], image_size: int, place: Place) -> Statistics:
    """Statistics of a whole split, exact: from the counts of the 256 grey values."""
    rows = plan_evaluation(files, batch_size=EVALUATION_BATCH, rank=place.rank, world=place.world)
    counts = np.zeros(256 + len(CLASSES), np.int64)
    for batch in read_batches(rows, image_size=image_size):
        counts[:256] += np.bincount(batch.pixels.ravel(), minlength=256)
        counts[256:] += np.bincount(batch.labels, minlength=len(CLASSES))
    totals = sum_over_ranks(torch.from_numpy(counts), place).numpy()
    values, shares = np.arange(256) / 255, totals[:256] / totals[:256].sum()
    mean = float(shares @ values)
    return Statistics(mean, float(np.sqrt(shares @ (values - mean) ** 2)), totals[256:].tolist())


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
    logits, labels = [torch.empty(0, len(CLASSES))], [torch.empty(0, dtype=torch.int64)]
    for pixels, classes in device_batches(plans[place.rank], image_size, place):
        images = standardise(pixels, statistics.mean, statistics.std)
        images = images.contiguous(memory_format=torch.channels_last)
        logits.append(model(images).float().cpu())
        labels.append(classes.cpu())
    counts = [sum(plan.batch_sizes) for plan in plans]
    all_logits = rows_of_all_ranks(torch.cat(logits), counts, place)
    all_labels = rows_of_all_ranks(torch.cat(labels), counts, place)
    return Logits(all_logits.numpy(), all_labels.numpy())


@torch.inference_mode()
def seconds_an_image(model: nn.Module, pixels: Tensor, statistics: Statistics) -> float:
    """How long `evaluate` takes for an image, by two passes over a batch; the first warms up.

    Args:
        model: to be timed; its weights and statistics stay.
        pixels: (B, 1, S, S) uint8, on the model's device.
        statistics: of the train split.
    """
    model.eval()
    seconds = 0.0
    for _ in range(2):
        began = time.monotonic()
        images = standardise(pixels, statistics.mean, statistics.std)
        model(images.contiguous(memory_format=torch.channels_last)).float().cpu()
        seconds = time.monotonic() - began
    return seconds / len(pixels)


def device_batches(
    rows: ReadPlan, image_size: int, place: Place, skip: int = 0
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The pixels, (B, 1, S, S) uint8, and classes, (B,) int64, of a plan, on the device."""
    for batch in read_batches(rows, image_size=image_size, skip=skip):
        tensors = torch.from_numpy(batch.pixels), torch.from_numpy(batch.labels)
        if place.device.type == "cuda":  # pinned memory is copied while the GPU computes
            tensors = tensors[0].pin_memory(), tensors[1].pin_memory()
        pixels, labels = (tensor.to(place.device, non_blocking=True) for tensor in tensors)
        yield pixels, labels
