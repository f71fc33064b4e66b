"""What ingest is measured against, each warmed up first; the seconds as one JSON line.

Runs in an environment of its own (`make bench-ingest` builds it), as Daft and Ray need other
versions than the product. `bare` is a loop that does only the unavoidable work, in two processes,
with the fastest decoders found; its results are dropped.
"""

import hashlib
import json
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

SIDE = 224
PROCESSES = 2
WARM_UP_FILES = 16


def bare_image(path: str) -> int:
    """Read, hash, decode to grey, hash, reduce: what nobody can leave out."""
    import cv2
    import kornia_rs.io
    import simplejpeg

    from cxr_spark import image_arrays

    cv2.setNumThreads(1)
    with open(path, "rb") as file:
        data = file.read()
    hashlib.sha256(data).hexdigest()
    if data.startswith(b"\x89PNG"):
        size = struct.unpack(">II", data[16:24])
        grey = kornia_rs.io.decode_image_png_u8(data, size[::-1], "mono")[:, :, 0]
    else:
        grey = simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
    hashlib.sha256(grey).hexdigest()
    image_arrays.perceptual_hash(image_arrays.overview(grey))
    image_arrays.square(grey, SIDE, "crop")
    return 1


def bare(paths: list[str], out: str) -> None:
    """Two processes over the paths."""
    with get_context("fork").Pool(PROCESSES) as pool:
        list(pool.imap_unordered(bare_image, paths[:WARM_UP_FILES]))
        began = time.perf_counter()
        assert sum(pool.imap_unordered(bare_image, paths, chunksize=8)) == len(paths)
        report(began)


def daft(paths: list[str], out: str) -> None:
    """Glob, download, decode to grey, resize, write to Delta."""
    import daft
    from daft.functions import decode_image, download, resize

    def write(pattern: list[str], table: str) -> None:
        files = daft.from_glob_path(pattern)
        image = resize(decode_image(download(files["path"]), mode="L"), SIDE, SIDE)
        files.select("path", "size", image.alias("pixels")).write_deltalake(table)

    write(paths[:WARM_UP_FILES], f"{out}/warm")
    folder = str(Path(paths[0]).parent)
    began = time.perf_counter()
    write([f"{folder}/*"], f"{out}/table")
    report(began)


def ray(paths: list[str], out: str) -> None:
    """read_images to grey squares, to Parquet."""
    import ray.data

    ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False

    def write(files: list[str] | str, table: str) -> None:
        ray.data.read_images(files, size=(SIDE, SIDE), mode="L").write_parquet(table)

    write(paths[:WARM_UP_FILES], f"{out}/warm")
    began = time.perf_counter()
    write(str(Path(paths[0]).parent), f"{out}/table")
    report(began)


def report(began: float) -> None:
    """Print the seconds since then."""
    print(json.dumps({"seconds": time.perf_counter() - began}), flush=True)


def main() -> None:
    """Run one of them on the files of a folder."""
    rival, folder = sys.argv[1:]
    paths = sorted(str(path) for path in Path(folder).rglob("*.*") if path.is_file())
    out = tempfile.mkdtemp(prefix="rival-")
    run: dict[str, Callable[[list[str], str], None]] = {"bare": bare, "daft": daft, "ray": ray}
    try:
        run[rival](paths, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
