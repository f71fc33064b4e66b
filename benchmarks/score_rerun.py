"""Memory of scoring many images, and runs that find nothing new: over a table, over a folder.

    make bench-score-rerun
    .venv/bin/python -m benchmarks.score_rerun --images 10000

The images are small noise, so that 100,000 of them take minutes; each run is a process of its own,
Spark's start included. Peaks are of resident memory, MiB, by kind of process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.scale import CHECKOUT, SPARK, draw, resident
from tests import artifacts

SIDE = 32


def job(name: str, *arguments: object) -> tuple[dict, dict[str, float], float]:
    """Runs a job; its summary, peak MiB by kind of process, and seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, f"jobs/{name}.py", *map(str, arguments)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYSPARK_SUBMIT_ARGS": SPARK},
    )
    peaks = {"driver": 0.0, "jvm": 0.0, "worker": 0.0}
    while process.poll() is None:
        for kind, mebibytes in resident(process.pid):
            peaks[kind] = max(peaks[kind], round(mebibytes))
        time.sleep(0.5)
    assert process.stdout is not None
    summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 0, summary
    return summary, peaks, time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    options = parser.parse_args()
    found: dict[str, object] = {"benchmark": "score_rerun", "images": options.images}
    with tempfile.TemporaryDirectory() as scratch:
        source, on = draw(options.images, Path(scratch) / "nih"), ("--warehouse", f"{scratch}/wh")
        curated, _, _ = job("curate", *on, "--nih", source, "--image-size", SIDE)
        found["curated"] = curated["counts"]["images"]
        model = ("--model", artifacts.save(Path(scratch) / "models", size=SIDE))
        for what, given in (("table", ("--split", "all")), ("folder", ("--input", source))):
            for run in ("first", "rerun"):
                summary, peaks, seconds = job("score", *on, *model, *given)
                counts = summary["counts"]
                assert run == "first" or counts["skipped"] == counts["listed"], counts
                found[f"{what}_{run}"] = {
                    "seconds": round(seconds, 1),
                    "listed": counts["listed"],
                    "inferred": counts["inferred"],
                    "peak_mib": peaks,
                }
                print(what, run, found[f"{what}_{run}"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
