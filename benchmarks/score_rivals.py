"""What scoring is measured against, each warmed up first; the seconds as one JSON line.

    python -m benchmarks.score_rivals bare|daft|ray|daft-torch|ray-torch KIND MODEL SOURCE OUT

All run the artifact's own ONNX graph by ONNX Runtime, one thread in each of two processes, 16
images at once; `-torch` is the network in torch eager, as the rivals' own examples have it. KIND
says what SOURCE is: `png` or `jpeg`, a folder of files, or `pixels`, a folder of Parquet files with
a column of that name. `bare` does only the unavoidable work: its pixels are in memory before the
clock starts, its decoders are the fastest found, and its results are dropped.
"""

import json
import shutil
import struct
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 224
PROCESSES = 2
AT_ONCE = 16
WARM_UP = 64
# Where torch is, for who runs in the rivals' environment.
PRODUCT_PACKAGES = Path(".venv/lib/python3.11/site-packages").absolute()


class Scorer:
    """A model of one thread: (n, 224, 224) uint8 to (n, 9) probabilities."""

    def __init__(self, model: str, engine: str = "onnx") -> None:
        self.logits = by_torch(model) if engine == "torch" else by_onnx(model)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        powers = np.exp(self.logits(pixels).astype(np.float64))
        return powers / powers.sum(axis=1, keepdims=True)


def by_onnx(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The artifact's graph in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        f"{model}/model.onnx", options, providers=["CPUExecutionProvider"]
    )
    return lambda pixels: session.run(["logits"], {"pixels": pixels[:, np.newaxis]})[0]


def by_torch(model: str) -> Callable[[np.ndarray], np.ndarray]:
    """The artifact's network in torch, eager."""
    sys.path.append(str(PRODUCT_PACKAGES))
    import torch

    from cxr_spark import models

    torch.set_num_threads(1)
    network, card = models.load_model(model)
    network = network.to(memory_format=torch.contiguous_format)

    def logits(pixels: np.ndarray) -> np.ndarray:
        images = torch.from_numpy(pixels[:, np.newaxis].copy())
        with torch.inference_mode():
            return network(models.standardise(images, card.mean, card.std)).numpy()

    return logits


# Of a process of the bare loop: its model, and pixels that it shares with the others.
_scorer: Scorer | None = None
_pixels: np.ndarray | None = None


def _load(model: str) -> None:
    global _scorer
    _scorer = Scorer(model)


def _score_pixels(start: int) -> int:
    assert _scorer is not None and _pixels is not None
    return len(_scorer(_pixels[start : start + AT_ONCE]))


def _score_files(paths: list[str]) -> int:
    assert _scorer is not None
    return len(_scorer(np.stack([square(path) for path in paths])))


def square(path: str) -> np.ndarray:
    """Read, decode to grey, reduce: what nobody can leave out."""
    import cv2
    import kornia_rs.io
    import simplejpeg

    from cxr_spark import image_arrays

    cv2.setNumThreads(1)
    data = Path(path).read_bytes()
    if data.startswith(b"\x89PNG"):
        size = struct.unpack(">II", data[16:24])
        grey = kornia_rs.io.decode_image_png_u8(data, size[::-1], "mono")[:, :, 0]
    else:
        grey = simplejpeg.decode_jpeg(data, colorspace="GRAY")[:, :, 0]
    return image_arrays.square(grey, SIDE, "crop")


def bare(kind: str, model: str, source: str, out: str, engine: str) -> int:
    """Two processes over what is there, in shares of a batch."""
    global _pixels
    if kind == "pixels":
        _pixels = in_memory(source)
        score, shares = _score_pixels, list(range(0, len(_pixels), AT_ONCE))
    else:
        paths = files(source)
        score, shares = (
            _score_files,
            [paths[i : i + AT_ONCE] for i in range(0, len(paths), AT_ONCE)],
        )
    with get_context("fork").Pool(PROCESSES, _load, (model,)) as pool:
        list(pool.imap_unordered(score, shares[: WARM_UP // AT_ONCE]))
        began = time.perf_counter()
        images = sum(pool.imap_unordered(score, shares))
        report(began, images)
    return images


def in_memory(source: str) -> np.ndarray:
    """The pixels of all Parquet files below a folder."""
    import pyarrow.parquet as pq

    columns = [pq.ParquetFile(path).read(["pixels"])["pixels"] for path in files(source)]
    rows = [np.frombuffer(row.as_buffer(), np.uint8) for column in columns for row in column]
    return np.stack(rows).reshape(-1, SIDE, SIDE)


def files(source: str) -> list[str]:
    """The files below a folder, hidden ones left out."""
    found = (path for path in Path(source).rglob("*.*") if path.is_file())
    return sorted(str(path) for path in found if not path.name.startswith("."))


def daft(kind: str, model: str, source: str, out: str, engine: str) -> None:
    """Glob, download, decode to grey, resize, score in two processes, write to Delta."""
    import daft
    from daft.functions import decode_image, download, resize

    @daft.cls(max_concurrency=PROCESSES, use_process=True)
    class Predict:
        def __init__(self) -> None:
            self.scorer = Scorer(model, engine)

        @daft.method.batch(
            return_dtype=daft.DataType.list(daft.DataType.float64()), batch_size=AT_ONCE
        )
        def of(self, images: Any) -> list[list[float]]:
            return self.scorer(arrays(images.to_pylist())).tolist()

    def write(paths: list[str], table: str) -> None:
        if kind == "pixels":
            rows = daft.read_parquet(paths).select("image_id", "content_sha256", "pixels")
            pixels, kept = rows["pixels"], ("image_id", "content_sha256")
        else:
            rows = daft.from_glob_path(paths)
            pixels = resize(decode_image(download(rows["path"]), mode="L"), SIDE, SIDE)
            kept = ("path", "size")
        scored = rows.select(*kept, Predict().of(pixels).alias("probabilities"))
        scored.write_deltalake(table)

    write(files(source)[: 1 if kind == "pixels" else WARM_UP], f"{out}/warm")
    began = time.perf_counter()
    write(files(source), f"{out}/table")
    report(began, rows_of(f"{out}/table"))


def arrays(images: list[Any]) -> np.ndarray:
    """Pixels as bytes or as arrays, as (n, 224, 224)."""
    if isinstance(images[0], bytes):
        return np.frombuffer(b"".join(images), np.uint8).reshape(-1, SIDE, SIDE)
    return np.stack([np.asarray(image, np.uint8).reshape(SIDE, SIDE) for image in images])


def ray(kind: str, model: str, source: str, out: str, engine: str) -> None:
    """read_images to grey squares, score in two actors, write Parquet."""
    import ray.data

    ray.init(num_cpus=PROCESSES + 1, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False

    class Predict:
        def __init__(self) -> None:
            self.scorer = Scorer(model, engine)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            name = "pixels" if kind == "pixels" else "image"
            images = batch.pop(name)
            batch["probabilities"] = self.scorer(arrays(list(images)))
            return batch

    def write(paths: list[str], table: str) -> None:
        if kind == "pixels":
            rows = ray.data.read_parquet(paths, columns=["image_id", "content_sha256", "pixels"])
        else:
            rows = ray.data.read_images(paths, size=(SIDE, SIDE), mode="L", include_paths=True)
        scored = rows.map_batches(Predict, concurrency=PROCESSES, batch_size=AT_ONCE)
        scored.write_parquet(table)

    write(files(source)[: 1 if kind == "pixels" else WARM_UP], f"{out}/warm")
    began = time.perf_counter()
    write(files(source), f"{out}/table")
    report(began, rows_of(f"{out}/table"))


def rows_of(folder: str) -> int:
    """The rows of all Parquet files below a folder."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in Path(folder).rglob("*.parquet"))


def report(began: float, images: int) -> None:
    """Print the seconds since then, and the images scored."""
    print(json.dumps({"seconds": time.perf_counter() - began, "images": images}), flush=True)


def main() -> None:
    """Run one of them."""
    name, kind, model, source, out = sys.argv[1:]
    rival, _, engine = name.partition("-")
    try:
        {"bare": bare, "daft": daft, "ray": ray}[rival](kind, model, source, out, engine or "onnx")
    finally:
        shutil.rmtree(out, ignore_errors=True)


if __name__ == "__main__":
    main()
