"""Training with the reader on against a batch held in memory, and two processes against one.

    make bench-train
    .venv/bin/python -m benchmarks.train_step --arch densenet121 --side 224 --precision bf16

The second is for a machine with a GPU, though it runs on CPUs, too.

`reader_over_memory`: images a second of optimiser steps on what the reader gives, over those on one
batch that never leaves memory, taken in turn in one process with all cores. `two_over_one`: two
processes with a core each over one process with two threads, the same global batch, on what the
reader gives. A process uses a GPU where there is one for each; what wasn't measured is named.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import reader
from cxr_spark import ranks
from cxr_spark.learner import Learner
from cxr_spark.ranks import Place
from cxr_spark.read_plans import plan_training
from cxr_spark.train_options import TrainOptions
from cxr_spark.validation import Statistics, device_batches

IMAGES = 3000  # or as many more as the steps take
WARM_UP = 4  # steps
STATISTICS = Statistics(0.5, 0.25, [1] * 9)
NO_GPU = "a GPU, densenet121 at 224 in bf16 on it most of all: there is none here"


def made(options: argparse.Namespace) -> Path:
    """The images, enough of them for the steps of a round."""
    images = max(IMAGES, (WARM_UP + options.steps) * options.batch_size)
    return reader.make(images, options.folder, options.side)


def batches(
    options: argparse.Namespace, place: Place, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the reader gives a rank."""
    plan = plan_training(
        reader.row_files(made(options)),
        batch_size=options.batch_size,
        seed=0,
        epoch=epoch,
        rank=place.rank,
        world=place.world,
    )
    return device_batches(plan, options.side, place)


def images_per_second(
    learner: Learner, inputs: Iterator[tuple[Tensor, Tensor]], steps: int, place: Place
) -> float:
    """Of the steps after the warm-up, on this rank."""
    for number in range(WARM_UP):
        learner.step(*next(inputs), number=number, learning_rate=1e-3)
    settle(place)
    began, count = time.perf_counter(), 0
    for number in range(WARM_UP, WARM_UP + steps):
        pixels, labels = next(inputs)
        learner.step(pixels, labels, number=number, learning_rate=1e-3)
        count += len(labels)
    settle(place)
    return count / (time.perf_counter() - began)


def settle(place: Place) -> None:
    """Wait for the GPU."""
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)


def reader_over_memory(options: argparse.Namespace, learner: Learner, place: Place) -> list[dict]:
    """Images a second on the reader and on one batch, in turn."""
    rounds = []
    for number in range(options.rounds):
        one = next(iter(batches(options, place, number)))
        rounds.append(
            {
                "reader": images_per_second(
                    learner, batches(options, place, number), options.steps, place
                ),
                "memory": images_per_second(learner, repeat(one), options.steps, place),
            }
        )
    return rounds


def as_rank(options: argparse.Namespace) -> None:
    """One rank of `in_processes`; rank 0 prints the images a second of all."""
    with tempfile.TemporaryDirectory() as scratch, ranks.joined(scratch) as place:
        learner = Learner(train_options(options), STATISTICS, place)
        here = images_per_second(learner, batches(options, place, 0), options.steps, place)
        of_all = ranks.sum_over_ranks(torch.tensor([here], dtype=torch.float64), place)
        if place.rank == 0:
            print(json.dumps({"images_per_second": of_all.item()}), flush=True)


def in_processes(count: int) -> float:
    """Images a second of so many processes together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={count}", "-m", "benchmarks.train_step", *sys.argv[1:], "--rank"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1])["images_per_second"])


def train_options(options: argparse.Namespace) -> TrainOptions:
    """Those of the product, with what is asked for."""
    return TrainOptions(
        arch=options.arch, precision=options.precision, batch_size=options.batch_size
    )


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary (else drawn)")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        as_rank(options)
        return
    made(options)
    has_gpu = torch.cuda.is_available()
    place = Place(device=torch.device("cuda" if has_gpu else "cpu"))
    learner = Learner(train_options(options), STATISTICS, place)
    speeds = reader_over_memory(options, learner, place)
    ratios = [round(found["reader"] / found["memory"], 3) for found in speeds]
    summary = {
        "benchmark": "train_step",
        "arch": options.arch,
        "side": options.side,
        "device": torch.cuda.get_device_name() if has_gpu else "cpu",
        "images_per_second": {n: round(median(f[n] for f in speeds), 1) for n in speeds[0]},
        "reader_over_memory": median(ratios),
        "pairs": ratios,
        "precision": "bf16" if learner.uses_bf16 else "fp32",
        "not_measured": [] if has_gpu else [NO_GPU],
    }
    if has_gpu and torch.cuda.device_count() < 2:
        summary["not_measured"] = ["two processes: they need a GPU each"]
    else:
        pairs = [(in_processes(2), in_processes(1)) for _ in range(options.rounds)]
        summary["processes"] = {
            "images_per_second": {
                "two": round(median(two for two, _ in pairs), 1),
                "one": round(median(one for _, one in pairs), 1),
            },
            "two_over_one": round(median(two / one for two, one in pairs), 3),
            "pairs": [round(two / one, 3) for two, one in pairs],
        }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
