"""Makes a folder of distinct radiographs to measure with, in the layout of a source.

The pictures are those of `--from`, real ones if you have them, each shifted and mirrored to give
many files that compress as the originals do; without it they are drawn.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from cxr_spark import phantom
from cxr_spark.labels import CLASSES

LAYOUT = {
    "png": "TB_Chest_Radiography_Database/Tuberculosis/Tuberculosis-{}.png",
    "jpeg": "chest_xray/train/PNEUMONIA/person{}_virus_1.jpeg",
}
PNG_SIDE = 1024
JPEG_QUALITIES = (75, 95)
"""The lowest and the highest of mixed JPEGs, as the sources' are."""
RGB_SHARE, PROGRESSIVE_SHARE = 0.2, 0.1


def originals(folder: str | None) -> list[np.ndarray]:
    """Grey pictures to vary; drawn at 1024 x 1024 where there is no folder."""
    if folder is None:
        drawn = (
            phantom.draw([label], seed=[0, i], canvas=PNG_SIDE) for i, label in enumerate(CLASSES)
        )
        return [picture.pixels for picture in drawn]
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix in (".png", ".jpg", ".jpeg"))
    read = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths)
    return [picture for picture in read if picture is not None]


def variants(pictures: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Pictures without end, no two alike."""
    rng = np.random.default_rng(0)
    while True:
        for picture in pictures:
            shift = rng.integers(0, picture.shape)
            moved = np.roll(picture, tuple(shift), axis=(0, 1))
            yield np.ascontiguousarray(moved[:, :: rng.choice((1, -1))])


def jpeg(picture: np.ndarray, number: int) -> np.ndarray:
    """One of the mixed JPEGs: of some quality, now and then of three channels or progressive."""
    rng = np.random.default_rng(number)
    is_rgb, is_progressive = rng.random(2) < (RGB_SHARE, PROGRESSIVE_SHARE)
    if is_rgb:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    quality = int(rng.integers(*JPEG_QUALITIES, endpoint=True))
    how = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(is_progressive)]
    ok, data = cv2.imencode(".jpg", picture, how)
    assert ok
    return data


def make(kind: str, files: int, out: Path, folder: str | None = None) -> Path:
    """Write the files unless they are there; the source's folder."""
    root = out / f"{'mixed-' if kind == 'jpeg' else ''}{kind}-{files}"
    pictures = variants(originals(folder))
    for number in range(files):
        path = root / LAYOUT[kind].format(number)
        picture = next(pictures)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "png":
            square = cv2.resize(picture, (PNG_SIDE, PNG_SIDE), interpolation=cv2.INTER_AREA)
            ok, data = cv2.imencode(".png", square, [cv2.IMWRITE_PNG_COMPRESSION, 6])
            assert ok
        else:
            data = jpeg(picture, number)
        path.write_bytes(data.tobytes())
    return root


def main() -> None:
    """Make a corpus from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=LAYOUT, default="png")
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/.corpus"))
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary")
    options = parser.parse_args()
    print(make(options.kind, options.files, options.out, options.folder))


if __name__ == "__main__":
    main()
