"""Memory of scoring many images of the size that models see, over time, by quarters of the images.

    make bench-score-memory
    .venv/bin/python -m benchmarks.score_memory --images 2000

The files are drawn noise, no two alike, scored by resnet18 at 224 from PNG to a committed table.
Peaks are of resident memory, MiB, by kind of process, each the largest one's of its kind.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from benchmarks.scale import CHECKOUT, SPARK, resident
from tests import artifacts

SIDE = 224
FILE_SIDE = 256
QUARTERS = ("25 %", "50 %", "75 %", "100 %")
SAMPLE_SECONDS = 0.5


def draw(images: int, folder: Path) -> Path:
    """PNG files of noise with some structure."""
    rng = np.random.default_rng(0)
    for number in range(images):
        place = folder / f"{number // 1000:03}" / f"{number:06}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (32, 32), dtype=np.uint8)
        assert cv2.imwrite(str(place), cv2.resize(coarse, (FILE_SIDE, FILE_SIDE)))
    return folder


class Progress:
    """How many images a job says that it has done, read from its words."""

    def __init__(self, stderr: IO[str]) -> None:
        self.done, self.words = 0, ""
        self._thread = threading.Thread(target=self._read, args=(stderr,), daemon=True)
        self._thread.start()

    def _read(self, stderr: IO[str]) -> None:
        for line in stderr:
            self.words = line
            if said := re.search(r"([\d,]+) of [\d,]+ images", line):
                self.done = int(said[1].replace(",", ""))


def measured(images: int, *options: object) -> tuple[dict, list[dict[str, float]]]:
    """Runs the job; its summary, and the peaks of each quarter of the images."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "jobs/score.py", *map(str, options)],
        cwd=CHECKOUT,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": SPARK},
    )
    assert process.stdout is not None and process.stderr is not None
    progress = Progress(process.stderr)
    peaks: list[dict[str, float]] = [{} for _ in QUARTERS]
    while process.poll() is None:
        quarter = peaks[min(3, 4 * progress.done // images)]
        for kind, mebibytes in resident(process.pid, "VmRSS"):
            quarter[kind] = max(quarter.get(kind, 0.0), mebibytes)
        time.sleep(SAMPLE_SECONDS)
    assert process.returncode == 0, progress.words
    return json.loads(process.stdout.read().splitlines()[-1]), peaks


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model = artifacts.save(Path(scratch) / "models", size=SIDE)
        source = draw(options.images, Path(scratch) / "in")
        time.sleep(4)  # the job leaves files alone that have just been written
        on = ("--warehouse", f"{scratch}/warehouse", "--model", model, "--input", source)
        summary, peaks = measured(options.images, *on)
    counts = summary["counts"]
    assert counts["inferred"] == options.images, counts
    found = {
        name: {kind: round(mebibytes) for kind, mebibytes in peak.items()}
        for name, peak in zip(QUARTERS, peaks, strict=True)
    }
    for name, peak in found.items():
        print(name, peak, flush=True)
    print(
        json.dumps(
            {
                "benchmark": "score_memory",
                "images": options.images,
                "seconds": summary["seconds"],
                "images_per_second": counts["images_per_second"],
                "peak_mib": found,
            }
        )
    )


if __name__ == "__main__":
    main()
