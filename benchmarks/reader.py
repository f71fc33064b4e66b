"""The reader alone against bare pyarrow, LitData, Streaming, WebDataset and a DataLoader of files.

    make bench-reader
    .venv/bin/python -m benchmarks.reader --images 12000 --from ../shared/data/tuberculosis

224 x 224 uint8 images to torch tensors in batches of 32, in a process each, the second pass timed;
above 1: the reader is faster. `bare` is pyarrow in one thread, unshuffled, without a copy from
Parquet's decoder to the tensor; the others shuffle. The peers hold the images as raw arrays and
use two worker processes; `files` decodes the PNG files that the images come from, in two workers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks import corpus, pairs
from cxr_spark.read_plans import RowFile, plan_training
from cxr_spark.reader import read_batches

SIDE = 224
BATCH = 32
WORKERS = 2
PEERS = ("litdata", "streaming", "webdataset")
CORPUS = Path("benchmarks/.corpus")


def make(images: int, folder: str | None, side: int = SIDE) -> Path:
    """The images as Parquet files like those of the images table, in `parquet/`."""
    root = CORPUS / f"reader-{images}-{side}"
    if (root / "parquet").exists():
        return root
    small = [cv2.resize(p, (side, side)) for p in corpus.originals(folder)]
    variants = corpus.variants(small)
    (root / "unfinished").mkdir(parents=True, exist_ok=True)
    rows_per_file = (8 << 20) // side**2  # one row group a file, as curate writes
    for start in range(0, images, rows_per_file):
        numbers = range(start, min(start + rows_per_file, images))
        table = pa.table(
            {
                "image_id": [f"tuberculosis:{number}" for number in numbers],
                "label_index": pa.array([number % 9 for number in numbers], pa.int32()),
                "pixels": pa.array([next(variants).tobytes() for _ in numbers], pa.binary()),
            }
        )
        path = root / "unfinished" / f"part-{start:06}.parquet"
        pq.write_table(table, path, compression="zstd", use_dictionary=False)
    (root / "unfinished").rename(root / "parquet")
    return root


def samples(path: str) -> Iterator[dict[str, Any]]:
    """(1, SIDE, SIDE) uint8 images of a Parquet file and their classes, as the peers hold them."""
    table = pq.read_table(path, columns=["pixels", "label_index"])
    for pixels, label in zip(*table.to_pydict().values(), strict=True):
        image = np.frombuffer(pixels, np.uint8).reshape(1, SIDE, SIDE)
        yield {"image": torch.from_numpy(image.copy()), "label": label}


def arrays(root: Path) -> Iterator[tuple[np.ndarray, int]]:
    """The images of all files."""
    for path in sorted((root / "parquet").iterdir()):
        for sample in samples(str(path)):
            yield sample["image"].numpy(), sample["label"]


def row_files(root: Path) -> list[RowFile]:
    """The Parquet files, as the product's readers take them."""
    paths = sorted((root / "parquet").iterdir())
    return [RowFile(str(path.absolute()), pq.read_metadata(path).num_rows) for path in paths]


def ours(root: Path) -> Callable[[int], int]:
    """The product's reader, one rank."""
    files = row_files(root)

    def read(epoch: int) -> int:
        plan = plan_training(files, batch_size=BATCH, seed=0, epoch=epoch, rank=0, world=1)
        batches = read_batches(plan, image_size=SIDE)
        return sum(len(torch.from_numpy(batch.pixels)) for batch in batches)

    return read


def bare(root: Path) -> Callable[[int], int]:
    """pyarrow, one thread, to tensors that share the memory of its buffers."""
    paths = sorted((root / "parquet").iterdir())

    def read(epoch: int) -> int:
        count = 0
        for path in paths:
            table = pq.read_table(path, columns=["pixels", "label_index"], use_threads=False)
            values = table["pixels"].chunk(0).buffers()[2]
            pixels = torch.frombuffer(values, dtype=torch.uint8)[: table.num_rows * SIDE**2]
            labels = torch.from_numpy(table["label_index"].to_numpy())
            for rows in pixels.view(-1, 1, SIDE, SIDE).split(BATCH):
                count += len(rows)
            assert len(labels) == table.num_rows
        return count

    return read


def litdata(root: Path) -> Callable[[int], int]:
    """LitData's streaming reader over its own chunks."""
    from litdata import StreamingDataLoader, StreamingDataset

    loader = StreamingDataLoader(
        StreamingDataset(str(root / "litdata"), shuffle=True, item_loader=None),
        batch_size=BATCH,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return lambda epoch: sum(len(batch["image"]) for batch in loader)


def streaming(root: Path) -> Callable[[int], int]:
    """MosaicML Streaming over MDS shards."""
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    data = StreamingDataset(local=str(root / "streaming"), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=WORKERS, persistent_workers=True)
    return lambda epoch: sum(len(batch["image"]) for batch in loader)


def webdataset(root: Path) -> Callable[[int], int]:
    """WebDataset over tar shards."""
    import webdataset as wds

    shards = sorted(map(str, (root / "webdataset").glob("*.tar")))
    data = (
        wds.WebDataset(shards, shardshuffle=len(shards), workersplitter=wds.split_by_worker)
        .shuffle(1000)
        .map(lambda row: (np.frombuffer(row["bin"], np.uint8).reshape(1, SIDE, SIDE), row["cls"]))
        .batched(BATCH)
    )
    loader = wds.WebLoader(data, batch_size=None, num_workers=WORKERS, persistent_workers=True)
    return lambda epoch: sum(len(torch.as_tensor(images)) for images, _ in loader)


def files(root: Path) -> Callable[[int], int]:
    """A torch DataLoader that decodes and reduces the PNG files."""
    from torch.utils.data import DataLoader, Dataset

    paths = sorted((CORPUS / "png-1000").rglob("*.png"))

    class Pictures(Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, place: int) -> torch.Tensor:
            cv2.setNumThreads(1)
            grey = cv2.imread(str(paths[place]), cv2.IMREAD_GRAYSCALE)
            small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            return torch.from_numpy(small)[None]

    loader = DataLoader(
        Pictures(), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True
    )
    return lambda epoch: sum(len(batch) for batch in loader)


def to_litdata(root: Path) -> None:
    """Convert for LitData."""
    import litdata

    litdata.optimize(
        fn=samples,
        inputs=[str(path) for path in sorted((root / "parquet").iterdir())],
        output_dir=str(root / "litdata"),
        chunk_bytes="64MB",
        num_workers=1,
    )


def to_streaming(root: Path) -> None:
    """Convert for MosaicML Streaming."""
    from streaming import MDSWriter

    columns = {"image": f"ndarray:uint8:1,{SIDE},{SIDE}", "label": "int"}
    with MDSWriter(out=str(root / "streaming"), columns=columns) as writer:
        for image, label in arrays(root):
            writer.write({"image": image, "label": label})


def to_webdataset(root: Path) -> None:
    """Convert for WebDataset."""
    import webdataset as wds

    (root / "webdataset").mkdir(parents=True)
    with wds.ShardWriter(str(root / "webdataset" / "%04d.tar"), maxcount=1000, verbose=0) as writer:
        for number, (image, label) in enumerate(arrays(root)):
            writer.write({"__key__": f"{number:06}", "bin": image.tobytes(), "cls": label})


CONTESTANTS = (ours, bare, litdata, streaming, webdataset, files)
CONVERTERS = {"litdata": to_litdata, "streaming": to_streaming, "webdataset": to_webdataset}


def in_its_own_process(python: str, *arguments: str) -> dict[str, float]:
    """The last line that `--run` or `--convert` prints."""
    command = [python, "-m", "benchmarks.reader", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(name: str, root: Path) -> dict[str, float]:
    """Images a second of the second pass."""
    read = {contestant.__name__: contestant for contestant in CONTESTANTS}[name](root)
    read(0)
    began = time.perf_counter()
    count = read(1)
    return {"count": count, "images_per_second": count / (time.perf_counter() - began)}


def convert(name: str, root: Path) -> dict[str, float]:
    """Seconds of a conversion."""
    began = time.perf_counter()
    CONVERTERS[name](root)
    return {"seconds": round(time.perf_counter() - began, 1)}


def converted(name: str, root: Path, python: str, *common: str) -> float:
    """Seconds that a conversion took, this time or when it was done; a cut one is done again."""
    note = root / f"{name}.seconds"
    if not note.exists():
        shutil.rmtree(root / name, ignore_errors=True)
        seconds = in_its_own_process(python, "--convert", name, *common)["seconds"]
        note.write_text(str(seconds))
    return float(note.read_text())


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=".venv-bench-reader/bin/python", help="of the peers")
    parser.add_argument("--contestants", default=",".join(c.__name__ for c in CONTESTANTS))
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary (else drawn)")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--convert", help=argparse.SUPPRESS)
    options = parser.parse_args()
    root = make(options.images, options.folder)
    if options.run or options.convert:
        print(json.dumps(run(options.run, root) if options.run else convert(options.convert, root)))
        return
    names = options.contestants.split(",")
    if "files" in names:
        corpus.make("png", 1000, CORPUS, options.folder)
    pythons = {name: options.python if name in PEERS else sys.executable for name in names}
    common = ("--images", str(options.images))
    conversion = {
        name: converted(name, root, pythons[name], *common) for name in names if name in PEERS
    }
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            result = in_its_own_process(pythons[name], "--run", name, *common)
            expected = 1000 if name == "files" else options.images
            if result["count"] != expected:
                print(f"{name} gave {result['count']} of {expected} images", file=sys.stderr)
            speeds[name].append(result["images_per_second"])
        print({name: round(values[-1]) for name, values in speeds.items()}, flush=True)
    ratios = pairs.ratios(speeds, "ours")
    summary = {
        "benchmark": "reader",
        "images": options.images,
        "images_per_second": pairs.medians(speeds, 0),
        "reader_over": pairs.medians(ratios, 3),
        "pairs": ratios,
        "conversion_seconds": conversion,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
