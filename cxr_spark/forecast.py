"""What a training run will be, before it begins: rows, steps, parameters, memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from cxr_spark import delta
from cxr_spark.labels import CLASSES
from cxr_spark.models import build_model
from cxr_spark.ranks import idle_gpus
from cxr_spark.reader import AHEAD_BYTES, WINDOW_BYTES, batches_ahead
from cxr_spark.run import Run
from cxr_spark.tables import Warehouse
from cxr_spark.training_plan import TrainingPlan

# Of a rank before it has read or computed anything: Python, torch, petastorm.
RANK_BYTES = 500 << 20
# Weight, gradient and AdamW's two moments, each fp32.
BYTES_PER_PARAMETER = 16
WINDOWS = 3
MEBIBYTE = 1 << 20
LABELS = pa.schema([("label_index", pa.int32())])


def tell(warehouse: Warehouse, plan: TrainingPlan, run: Run) -> None:
    """Say what a run will be, and leave it in the run's outputs; nothing is written."""
    options = plan.options
    parameters = parameter_count(options.arch)
    memory = memory_bytes(plan, parameters)
    rows = rows_by_class(warehouse, plan)
    run.say(
        f"{options.workers} workers, {options.arch} with {parameters:,} parameters, images of "
        f"{plan.image_size} px: about {memory // MEBIBYTE:,} MiB each"
    )
    told = f"{plan.steps:,} in {options.epochs} epochs" if plan.steps else "as many as time allows"
    run.say(f"steps: {told}, {plan.epoch_steps:,} an epoch, of {options.batch_size} images")
    if plan.repeated_rows:
        run.say(f"an epoch gives out {plan.repeated_rows} images twice, for equal batches")
    if idle := idle_gpus(options.workers):
        run.say(idle)
    run.say(f"{'':14}" + "".join(f"{split:>10}" for split in rows))
    for place, name in enumerate(CLASSES):
        run.say(f"{name:14}" + "".join(f"{counts[place]:>10,}" for counts in rows.values()))
    run.outputs |= {
        "workers": options.workers,
        "epochs": options.epochs,
        "steps": plan.steps,
        "steps_per_epoch": plan.epoch_steps,
        "rows_repeated": plan.repeated_rows,
        "rows": {split: dict(zip(CLASSES, counts, strict=True)) for split, counts in rows.items()},
        "parameters": parameters,
        "memory_bytes_per_worker": memory,
    }


def rows_by_class(warehouse: Warehouse, plan: TrainingPlan) -> dict[str, list[int]]:
    """Rows of each class in train, as far as it is learned from, val and test."""
    read = {file.path: file.num_rows for file in plan.train_files}
    rows = {split: np.zeros(len(CLASSES), np.int64) for split in ("train", "val", "test")}
    for file in warehouse.files("images", plan.options.images_version):
        labels = delta.read_part(file.path, LABELS)["label_index"].to_numpy()
        labels = labels[: read.get(file.path)]
        rows[str(file.partition["split"])] += np.bincount(labels, minlength=len(CLASSES))
    return {split: counts.tolist() for split, counts in rows.items()}


def parameter_count(architecture: str) -> int:
    """Parameters of a network of ours."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(architecture).parameters())


def memory_bytes(plan: TrainingPlan, parameters: int) -> int:
    """About what a rank needs at its peak: itself, the network in training, what it has read.

    Activations are counted on one pass without data, twice, as their gradients come beside them.
    """
    options = plan.options
    images = -(-options.batch_size // (options.workers * options.accumulate))
    averages = 4 * parameters if options.ema else 0
    activations = 2 * activation_bytes(options.arch, plan.image_size, images)
    network = BYTES_PER_PARAMETER * parameters + averages
    return RANK_BYTES + network + activations + reading_bytes(plan)


def reading_bytes(plan: TrainingPlan) -> int:
    """Of the pixels that a rank holds at most: windows, and what is read ahead of them as row
    groups and of the network as batches."""
    options, image_bytes = plan.options, plan.image_size**2
    rows_bytes = plan.train_rows // options.workers * image_bytes
    batch = -(-options.batch_size // options.workers)
    batches = batches_ahead([batch], plan.image_size) * batch * image_bytes
    return min(WINDOWS * WINDOW_BYTES + AHEAD_BYTES, rows_bytes) + batches


def activation_bytes(architecture: str, image_size: int, images: int) -> int:
    """Bytes of what all layers of a network put out for a batch, in fp32."""
    total = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * 4

    with torch.device("meta"):
        model = build_model(architecture)
        for layer in _layers(model):
            layer.register_forward_hook(add)
        model(torch.empty(images, 1, image_size, image_size))
    return total


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if not list(module.children()))
