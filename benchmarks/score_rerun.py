"""Memory of scoring many images, and runs that find nothing new: over a table, over a folder.

    make bench-score-rerun
    .venv/bin/python -m benchmarks.score_rerun --images 10000

The images are small noise, so that 100,000 of them take minutes; each run is a process of its own,
Spark's start included. Peaks are of resident memory, MiB, by kind of process.
"""

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.scale import draw, measured
from tests import artifacts

SIDE = 32


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
        curated, _, _ = measured("curate", *on, "--nih", source, "--image-size", SIDE)
        found["curated"] = curated["counts"]["images"]
        model = ("--model", artifacts.save(Path(scratch) / "models", size=SIDE))
        for what, given in (("table", ("--split", "all")), ("folder", ("--input", source))):
            for run in ("first", "rerun"):
                summary, peaks, seconds = measured("score", *on, *model, *given)
                counts = summary["counts"]
                assert run == "first" or counts["skipped"] == counts["listed"], counts
                found[f"{what}_{run}"] = {
                    "seconds": round(seconds, 1),
                    "listed": counts["listed"],
                    "inferred": counts["inferred"],
                    "peak_mib": {kind: round(value) for kind, value in peaks.items()},
                }
                print(what, run, found[f"{what}_{run}"], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
