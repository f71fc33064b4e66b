"""Measures the search for near-duplicates on distorted copies of real radiographs.

Recall is of pairs of an original and its copy; false pairs are counted over all pairs of copies of
different originals. Prints a Markdown table, and JSON in the last line.

    python -m benchmarks.near_duplicates --from ../shared/data
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from cxr_spark import image_arrays
from cxr_spark.near_duplicates import near_pairs
from cxr_spark.session import spark_session

Picture = NDArray[np.uint8]
Distortion = Callable[[Picture], Picture]

LONGEST_SIDE = 1024
"""Pixels to which the originals are reduced first: it saves time, and archives do the same."""
SAME_PICTURE = 0.995
"""Correlation of two files' plain pixels from which they count as one original."""


def distinct_pictures(folder: str) -> list[Picture]:
    """The radiographs below a folder, grey, each picture once."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
    read = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths)
    distinct: list[Picture] = []
    plain: list[NDArray[np.float64]] = []
    for picture in (picture for picture in read if picture is not None):
        small = cv2.resize(picture, (128, 128), interpolation=cv2.INTER_AREA).ravel()
        standard = (small - small.mean()) / np.linalg.norm(small - small.mean())
        if not plain or max(np.stack(plain) @ standard) < SAME_PICTURE:
            distinct.append(picture)
            plain.append(standard)
    return distinct


def jpeg(quality: int) -> Distortion:
    """Encodes as JPEG and decodes again."""

    def distort(picture: Picture) -> Picture:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)

    return distort


def scale(factor: float) -> Distortion:
    """Resizes both sides by a factor."""
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return lambda picture: cv2.resize(picture, None, fx=factor, fy=factor, interpolation=way)


def stretch(side: int) -> Distortion:
    """Resizes to a square, whatever the aspect ratio was."""
    return lambda picture: cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)


def cut(left: float, top: float, right: float, bottom: float) -> Distortion:
    """Cuts off parts of the width and height."""

    def distort(picture: Picture) -> Picture:
        height, width = picture.shape
        return picture[
            round(top * height) : height - round(bottom * height),
            round(left * width) : width - round(right * width),
        ]

    return distort


def levels(curve: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Distortion:
    """Changes grey levels by a curve from [0, 1] to [0, 1]."""
    table = np.round(255 * np.clip(curve(np.arange(256) / 255), 0, 1)).astype(np.uint8)
    return lambda picture: table[picture]


def wide(white: int, black: int = 0) -> Distortion:
    """Stores in 16 bits, and reads that as this package does."""

    def distort(picture: Picture) -> Picture:
        samples = np.round(black + picture * ((white - black) / 255)).astype(np.uint16)
        return image_arrays.to_8_bits(samples)

    return distort


def marked(size: float) -> Distortion:
    """Writes a side marker and a line of text into upper corners."""

    def distort(picture: Picture) -> Picture:
        height, width = picture.shape
        unit, font, picture = min(height, width) / 512, cv2.FONT_HERSHEY_SIMPLEX, picture.copy()
        for text, x, y, letter in (("R", 0.05, 0.14, 1.5), ("PORTABLE 12:45", 0.45, 0.08, 0.6)):
            place, thick = (int(x * width), int(y * height)), max(1, int(2 * unit * size))
            cv2.putText(
                picture, text, place, font, letter * unit * size, (255,), thick, cv2.LINE_AA
            )
        return picture

    return distort


def arrow(picture: Picture) -> Picture:
    """Draws an arrow across the middle."""
    height, width = picture.shape
    tail, head = (width // 2, int(0.35 * height)), (int(0.35 * width), int(0.55 * height))
    return cv2.arrowedLine(picture.copy(), tail, head, (255,), max(2, width // 150))


def chain(*distortions: Distortion) -> Distortion:
    """One after the other."""

    def distort(picture: Picture) -> Picture:
        for step in distortions:
            picture = step(picture)
        return picture

    return distort


DISTORTIONS: dict[tuple[str, str], Distortion] = {
    **{("re-encoded", f"JPEG, quality {q}"): jpeg(q) for q in (95, 90, 80, 70, 60, 50)},
    **{("rescaled", f"by {f}"): scale(f) for f in (0.5, 0.75, 1.5, 2)},
    ("rescaled", "stretched to 512 x 512"): stretch(512),
    ("rescaled", "stretched to 224 x 224"): stretch(224),
    ("rescaled", "to 256 x 256, then JPEG 75"): chain(stretch(256), jpeg(75)),
    ("8 and 16 bit", "16 bits"): wide(65535),
    ("8 and 16 bit", "12 bits in 16"): wide(4095),
    ("8 and 16 bit", "12 bits in 16, black at 100, white at 3100"): wide(3100, 100),
    ("cropped", "0.5 % off each side"): cut(0.005, 0.005, 0.005, 0.005),
    ("cropped", "1 % off each side"): cut(0.01, 0.01, 0.01, 0.01),
    ("cropped", "2 % off each side"): cut(0.02, 0.02, 0.02, 0.02),
    ("cropped", "2 % off the top"): cut(0, 0.02, 0, 0),
    ("cropped", "4 % off the top"): cut(0, 0.04, 0, 0),
    ("cropped", "4 % off the left"): cut(0.04, 0, 0, 0),
    ("cropped", "2 % off the left and the top"): cut(0.02, 0.02, 0, 0),
    ("cropped", "4 % off the left and the top"): cut(0.04, 0.04, 0, 0),
    ("cropped", "4 % off each side"): cut(0.04, 0.04, 0.04, 0.04),
    ("contrast", "x 0.7"): levels(lambda x: 0.5 + 0.7 * (x - 0.5)),
    ("contrast", "x 1.3, ends cut off"): levels(lambda x: 0.5 + 1.3 * (x - 0.5)),
    ("contrast", "+ 15 %, white cut off"): levels(lambda x: x + 0.15),
    ("contrast", "local equalisation (CLAHE)"): lambda p: cv2.createCLAHE(2, (8, 8)).apply(p),
    **{("gamma", f"{g}"): levels(lambda x, g=g: x**g) for g in (0.6, 0.8, 1.25, 1.6)},
    ("marked", "R, and a line of text"): marked(1),
    ("marked", "the same twice as large"): marked(2),
    ("marked", "an arrow across the middle"): arrow,
    ("several", "1 % off each side, half size, gamma 1.25, JPEG 70"): chain(
        cut(0.01, 0.01, 0.01, 0.01), scale(0.5), levels(lambda x: x**1.25), jpeg(70)
    ),
}


def copies(originals: list[Picture]) -> pd.DataFrame:
    """What `near_pairs` reads of each original, number -1, and of its distortions, 0 and on."""
    rows = []
    for original, picture in enumerate(originals):
        picture = scale(min(1, LONGEST_SIDE / max(picture.shape)))(picture)
        for number, distort in enumerate([lambda p: p, *DISTORTIONS.values()], start=-1):
            distorted = np.ascontiguousarray(distort(picture))
            overview = image_arrays.overview(distorted)
            thumbnail = image_arrays.thumbnail(overview).tobytes()
            rows.append((f"{original}:{number}", image_arrays.perceptual_hash(overview), thumbnail))
    return pd.DataFrame(rows, columns=["content_sha256", "perceptual_hash", "thumbnail"])


def measured(found: pd.DataFrame, originals: int) -> dict[str, float | dict[str, float]]:
    """Recall by distortion, and false pairs with the upper end of their 95 % interval.

    The bound is Poisson's; for no false pair it is the rule of three. It holds for pairs such as
    these: copies of few originals, which are not as many independent pictures.
    """
    one, other = (
        found[column].str.split(":", expand=True).astype(int).to_numpy()
        for column in ("content_sha256", "other_sha256")
    )
    true = one[:, 0] == other[:, 0]
    numbers = np.sort(np.stack([one[true, 1], other[true, 1]]), axis=0)
    of_original = numbers[1, numbers[0] == -1]
    hits = np.bincount(of_original, minlength=len(DISTORTIONS)) / originals
    pairs = originals * (originals - 1) // 2 * (len(DISTORTIONS) + 1) ** 2
    false = int((~true).sum())
    return {
        "originals": originals,
        "pairs_of_different_originals": pairs,
        "false_pairs": false,
        "false_per_million_at_most": round(chi2.ppf(0.95, 2 * (false + 1)) / 2 / pairs * 1e6, 3),
        "recall": {f"{k}: {n}": round(h, 4) for (k, n), h in zip(DISTORTIONS, hits, strict=True)},
    }


def main() -> None:
    """Prints the table, then all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", required=True, help="folder of radiographs")
    started = time.monotonic()
    originals = distinct_pictures(parser.parse_args().folder)
    with spark_session("near-duplicates") as spark:
        contents = spark.createDataFrame(copies(originals)).repartition(8)
        figures = measured(near_pairs(contents).toPandas(), len(originals))
    print("| kind | distortion | recall |\n|---|---|---|")
    for (kind, name), recall in zip(DISTORTIONS, figures["recall"].values(), strict=True):
        print(f"| {kind} | {name} | {recall:.3f} |")
    print(json.dumps(figures | {"seconds": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
