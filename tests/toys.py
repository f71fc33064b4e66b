"""Toy images that a network learns in seconds, and plans to train on them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.fit import Training
from cxr_spark.read_plans import RowFile
from cxr_spark.train_options import TrainOptions
from cxr_spark.training_plan import TrainingPlan

SIZE = 32


def toy_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright square whose place among nine tells the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 9
    pixels = rng.integers(0, 128, (count, SIZE, SIZE), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        row, column = divmod(int(label), 3)
        image[10 * row + 2 : 10 * row + 10, 10 * column + 2 : 10 * column + 10] += 100
    return pixels, labels


def write_images(path: Path, pixels: np.ndarray, labels: np.ndarray) -> RowFile:
    """A file as the images table has them, with the columns that training reads."""
    columns = {
        "label_index": pa.array(labels, pa.int32()),
        "pixels": pa.array([image.tobytes() for image in pixels], pa.binary()),
    }
    pq.write_table(pa.table(columns), path)
    return RowFile(str(path), len(labels))


def toy_plan(folder: Path, **options: Any) -> TrainingPlan:
    """Two files to train on, 108 images together, and one of 150 to validate on."""
    files = [
        write_images(folder / f"{seed}.parquet", *toy_images(count, seed))
        for seed, count in enumerate((64, 44, 150))
    ]
    given = {"epochs": 4, "workers": 1, "batch_size": 16} | options
    return TrainingPlan(TrainOptions(**given), SIZE, tuple(files[:2]), tuple(files[2:]))


def trained(plan: TrainingPlan, folder: Path, **more: Any) -> Training:
    """A run on this process alone, at its end or where it was stopped."""
    folder.mkdir(exist_ok=True)
    training = Training(plan, folder, **more)
    training.run()
    return training


def launch(program: str, *arguments: object, ranks: int = 2) -> subprocess.Popen:
    """Start a program in several ranks by torchrun, as TorchDistributor does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return subprocess.Popen(
        [
            *command,
            f"--nproc-per-node={ranks}",
            sys.executable,
            "-c",
            program,
            *map(str, arguments),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
