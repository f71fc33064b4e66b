"""Times the search for near-duplicates among 10 thousand, 100 thousand and 1 million hashes.

Buckets must fill as those of real radiographs do, so hashes are drawn from a smoothed bootstrap of
real ones' spectra (Silverman and Young 1987), see `draw_hashes`. Two in a hundred are copies of
another with 2 % of the bits changed.

    python -m benchmarks.near_duplicate_scaling --from ../shared/data
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.near_duplicates import distinct_pictures
from cxr_spark import image_arrays
from cxr_spark.near_duplicates import near_pairs
from cxr_spark.session import spark_session

COUNTS = (10_000, 100_000, 1_000_000)
CHUNK = 50_000
SMOOTHING = 0.9
MEAN_STRENGTH = 1.5
"""With these two as many pairs agree in a band as among the real radiographs of the public sources,
1.4 in 10,000: smoothing alone makes the bulk of distances right, but fewer close ones."""
COPIES = 0.02
CHANGED_BITS = 0.02
SETTINGS = {"spark.master": "local[2]", "spark.driver.memory": "3g"}


def draw_hashes(
    waves: NDArray[np.float32], count: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draws hashes, shape (count, 256), as radiographs have them.

    Args:
        waves: of real radiographs, shape (pictures, 256).
        count: hashes to draw.
        rng: source of chance.
    """
    mean = waves.mean(axis=0)
    steps = waves - mean
    mixed = rng.standard_normal((count, len(steps)), np.float32) @ steps / np.sqrt(len(steps) - 1)
    near = steps[rng.integers(0, len(steps), count)]
    return MEAN_STRENGTH * mean + np.sqrt(1 - SMOOTHING**2) * near + SMOOTHING * mixed > 0


def tables(overviews: list[NDArray[np.uint8]], count: int) -> Iterator[pa.Table]:
    """What `near_pairs` reads, in pieces. Thumbnails are real ones by turns, a copy's its own."""
    rng = np.random.default_rng(0)
    waves = np.stack([image_arrays.waves(overview) for overview in overviews])
    thumbnails = [image_arrays.thumbnail(overview).tobytes() for overview in overviews]
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        bits, pictures = draw_hashes(waves, size, rng), np.arange(size) % len(thumbnails)
        one, copy = rng.choice(size, (2, round(COPIES * size)), replace=False)
        bits[copy] = bits[one] ^ (rng.random((len(copy), 256)) < CHANGED_BITS)
        pictures[copy] = pictures[one]
        numbers = range(start, start + size)
        columns = {
            "content_sha256": [sha256(b"%d" % number).hexdigest() for number in numbers],
            "perceptual_hash": [row.tobytes().hex() for row in np.packbits(bits, axis=1)],
            "thumbnail": [thumbnails[picture] for picture in pictures],
        }
        yield pa.table(columns)


def seconds_to_search(spark: SparkSession, folder: Path) -> dict[str, float]:
    """Searches all of a folder's hashes; then, as new, one in a hundred of them."""
    contents = spark.read.parquet(str(folder))
    hundredth = contents.where(F.crc32("content_sha256") % 100 == 0)
    started = time.monotonic()
    pairs = near_pairs(contents).count()
    searched = time.monotonic()
    near_pairs(contents, hundredth).count()
    return {
        "pairs": pairs,
        "seconds": round(searched - started, 1),
        "seconds_for_a_hundredth": round(time.monotonic() - searched, 1),
    }


def main() -> None:
    """Prints a line for each count, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", required=True, help="folder of radiographs")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    options = parser.parse_args()
    overviews = [image_arrays.overview(picture) for picture in distinct_pictures(options.folder)]
    arguments = " ".join(f"--conf {name}={value}" for name, value in SETTINGS.items())
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"{arguments} pyspark-shell"
    results: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch, spark_session("near-duplicate scaling") as spark:
        for count in options.counts:
            folder = Path(scratch, str(count))
            folder.mkdir()
            for number, table in enumerate(tables(overviews, count)):
                pq.write_table(table, folder / f"{number}.parquet")
            if not results:  # Spark's first search is spent on starting workers and compiling
                seconds_to_search(spark, folder)
            found = {"hashes": count} | seconds_to_search(spark, folder)
            ratio = found["seconds"] / results[-1]["seconds"] if results else None
            results.append(found | ({"ratio": round(ratio, 1)} if ratio else {}))
            print(results[-1], flush=True)
    print(json.dumps({"settings": SETTINGS, "results": results}))


if __name__ == "__main__":
    main()
