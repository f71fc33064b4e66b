"""Memory and reruns of curate: workers at 1k and 10k images, the driver and a rerun at 100k.

    make bench-scale

Files are small noise images in NIH's layout, so that 100,000 of them take minutes; what a no-change
rerun is held against is the time that decoding as many real-sized ones takes here, at the rate
measured on `benchmarks/.corpus` in the same run, in two processes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from benchmarks import corpus
from cxr_spark.images import Preprocessing, facts_of_file

CHECKOUT = Path(__file__).resolve().parent.parent
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
SIDE = 40
DECODED = 200
SPARK = "--conf spark.master=local[2,4] --conf spark.driver.memory=1g pyspark-shell"


def draw(files: int, root: Path) -> Path:
    """NIH's layout with distinct noise images, three a patient."""
    rng, lines = np.random.default_rng(0), [HEADER]
    for number in range(files):
        folder = root / f"images_{number // 10_000 + 1:03}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{number // 3:08}_{number % 3:03}.png"
        picture = cv2.resize(rng.integers(0, 255, (10, 10), dtype=np.uint8), (SIDE, SIDE))
        assert cv2.imwrite(str(folder / name), picture)
        label = ("Edema", "No Finding", "Effusion")[number % 3]
        lines.append(f"{name},{label},0,{number // 3},50,F,PA,{SIDE},{SIDE},0.1,0.1,")
    (root / "Data_Entry_2017.csv").write_text("\n".join(lines) + "\n")
    return root


def measured(job: str, *options: object) -> tuple[dict, dict[str, float], float]:
    """Runs a job; its summary, peak MiB by kind of process, and seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, f"jobs/{job}.py", *map(str, options)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": SPARK},
    )
    peaks = {"driver": 0.0, "jvm": 0.0, "worker": 0.0}
    while process.poll() is None:
        for kind, mebibytes in resident(process.pid):
            peaks[kind] = max(peaks[kind], mebibytes)
        time.sleep(0.2)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 0, summary
    return summary, peaks, time.perf_counter() - began


def curate(warehouse: Path, source: Path) -> tuple[dict, dict[str, float], float]:
    """Curation of small images, measured."""
    return measured("curate", "--warehouse", warehouse, "--nih", source, "--image-size", 32)


def resident(driver: int, field: str = "VmHWM") -> Iterator[tuple[str, float]]:
    """Kind and resident MiB of the driver, the JVM and the Python workers; their peaks so far.

    Args:
        driver: its process id.
        field: of /proc/PID/status; `VmRSS` for what is resident now.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            status = (folder / "status").read_text()
        except (OSError, UnicodeDecodeError):
            continue
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if field not in fields:
            continue
        mebibytes = int(fields[field].split()[0]) / 1024
        if folder.name == str(driver):
            yield "driver", mebibytes
        elif "org.apache.spark.deploy.SparkSubmit" in command:
            yield "jvm", mebibytes
        elif "pyspark.daemon" in command or "pyspark/daemon" in command:
            yield "worker", mebibytes


def seconds_to_decode(files: int, folder: str | None) -> float:
    """Seconds that decoding as many real-sized files takes in two processes."""
    root = corpus.make("png", DECODED, Path("benchmarks/.corpus"), folder)
    paths = [str(path) for path in sorted(root.rglob("*.png"))]
    with get_context("fork").Pool(2) as pool:
        pool.starmap(facts_of_file, [(path, Preprocessing()) for path in paths[:16]])
        began = time.perf_counter()
        pool.starmap(facts_of_file, [(path, Preprocessing()) for path in paths], chunksize=8)
        return (time.perf_counter() - began) / len(paths) * files


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary (else drawn)")
    options = parser.parse_args()
    found: dict[str, object] = {"benchmark": "scale", "files": options.files}
    with tempfile.TemporaryDirectory() as scratch:
        for files in (1_000, 10_000, options.files):
            root = Path(scratch) / str(files)
            source = draw(files, root / "nih")
            _, peaks, seconds = curate(root / "warehouse", source)
            found[f"peak_mib_{files}"] = {name: round(value) for name, value in peaks.items()}
            found[f"seconds_{files}"] = round(seconds, 1)
            print(files, found[f"peak_mib_{files}"], f"{seconds:.0f} s", flush=True)
        summary, peaks, rerun = curate(root / "warehouse", source)
        assert summary["counts"]["decoded"] == 0
        decode = seconds_to_decode(options.files, options.folder)
    found |= {
        "rerun_seconds": round(rerun, 1),
        "rerun_peak_mib": {name: round(value) for name, value in peaks.items()},
        "decode_seconds": round(decode, 1),
        "rerun_over_decode": round(rerun / decode, 4),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
