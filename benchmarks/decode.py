"""Decoding with all its facts and checks, against a bare loop that only does what can't be spared.

    python -m benchmarks.decode --images DIR [--n 100]

The bare loop reads a file, hashes its bytes, decodes it to grey as fast as can be, hashes the
pixels, takes the perceptual hash and resizes. It checks nothing: no format, no colours, no damage.
Both run on one core in five paired rounds; a ratio of 1 would be decoding for nothing.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from cxr_spark import image_arrays
from cxr_spark.images import Preprocessing, facts_of_file

ROUNDS = 5
SUFFIXES = (".png", ".jpg", ".jpeg")


def bare(path: str, preprocessing: Preprocessing) -> str | None:
    """Does the least that gives a file's hashes and square; returns the hash of its pixels."""
    data = Path(path).read_bytes()
    sha256(data).hexdigest()
    grey = as_grey(data)
    digest = image_arrays.pixel_sha256(grey)
    image_arrays.perceptual_hash(image_arrays.overview(grey))
    image_arrays.square(grey, preprocessing.size, preprocessing.fit).tobytes()
    return digest


def as_grey(data: bytes) -> image_arrays.Array:
    """Decodes by the fastest decoder at hand, which leaves out colours where it can."""
    if data.startswith(b"\xff\xd8"):
        try:
            return simplejpeg.decode_jpeg(data, "GRAY")[:, :, 0]
        except ValueError:  # a layout that it doesn't know
            pass
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)


def whole(path: str, preprocessing: Preprocessing) -> str | None:
    """Decodes as curation does; returns the hash of the pixels."""
    return facts_of_file(path, preprocessing).pixel_sha256


def seconds(work: Callable[[str, Preprocessing], str | None], paths: list[str]) -> float:
    """Measures one pass over all files, in time of the processor: other programs don't count."""
    preprocessing = Preprocessing()
    start = time.process_time()
    for path in paths:
        work(path, preprocessing)
    return time.process_time() - start


def some_images(folder: Path, count: int) -> list[str]:
    """Returns so many images of a folder, spread evenly over their sorted paths."""
    paths = sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._")
    )
    if not paths:
        raise SystemExit(f"{folder}: no {', '.join(SUFFIXES)} files.")
    return [paths[at] for at in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]


def main() -> None:
    """Prints a line a round, then one JSON object."""
    parser = argparse.ArgumentParser(description="Whole decoding against a bare loop, on one core.")
    parser.add_argument("--images", type=Path, required=True, help="folder with PNG and JPEG files")
    parser.add_argument("--n", type=int, default=100, help="how many of them")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    paths = some_images(arguments.images, arguments.n)
    for work in (bare, whole):  # files into the page cache, code into memory
        seconds(work, paths)
    rounds = []
    for number in range(ROUNDS):
        # Which goes first alternates, so that a machine that slows down favours neither.
        order = (bare, whole) if number % 2 == 0 else (whole, bare)
        taken = {work.__name__: 1000 * seconds(work, paths) / len(paths) for work in order}
        rounds.append(taken)
        print(f"round {number + 1}: bare {taken['bare']:.2f} ms, whole {taken['whole']:.2f} ms")
    ratios = [taken["whole"] / taken["bare"] for taken in rounds]
    summary = {
        f"{name}_ms": round(statistics.median(taken[name] for taken in rounds), 3)
        for name in rounds[0]
    }
    summary |= {
        "images": len(paths),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_lowest": round(min(ratios), 3),
        "ratio_highest": round(max(ratios), 3),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
