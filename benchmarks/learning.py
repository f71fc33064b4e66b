"""What is learned with the defaults in a given time: CCE and calibration error on test.

    make bench-learning
    .venv/bin/python -m benchmarks.learning --from-shared ../shared/data

Draws 400 images a class, curates them at 96 px with a third of them for test, trains for ten
minutes, scores and evaluates, each by its job. `cce_prior` knows the class shares of train alone,
`cce_source_only` those of the image's source, `cce_border_only` its border and a thumbnail. With
`--from-shared` it's the images of a folder that holds the four sources, for two minutes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cxr_spark.labels import SOURCES
from cxr_spark.tables import Warehouse

CORPUS = Path("benchmarks/.corpus")
DRAWN_SECONDS, SHARED_SECONDS = 600, 120
CURATED = ("--image-size", 96, "--split-policy", "hash", "--ratios", "0.55,0.1,0.35")


def job(name: str, *arguments: object) -> dict[str, Any]:
    """The summary of a job, whose words go to stderr."""
    command = [sys.executable, f"jobs/{name}.py", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"jobs/{name}.py ended with exit code {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def draw(images_per_class: int) -> Path:
    """The drawn sources; drawn once."""
    drawn = CORPUS / f"learning-{images_per_class}"
    if not drawn.exists():  # the job leaves all of it or nothing
        job("sample", "--out", drawn, "--images-per-class", images_per_class)
    return drawn


def learn(sources: Path, root: Path, seconds: float) -> dict[str, Any]:
    """Curate, train, score and evaluate below a folder; what came of it."""
    named = [part for name in SOURCES for part in (f"--{name}", sources / name)]
    on = ("--warehouse", root / "warehouse")
    curated = job("curate", *on, *named, *CURATED)
    trained = job("train", *on, "--models", root / "models", "--max-runtime", seconds)
    job("score", *on, "--model", trained["model"], "--split", "all")
    evaluated = job("evaluate", *on)
    names = ("split", "slice", "class", "metric", "value", "n")
    rows = Warehouse(root / "warehouse").read_arrow("metrics", names).to_pylist()
    of_all = {"split": "test", "slice": "all", "class": "all", "metric": "ece"}
    (ece,) = [row for row in rows if of_all.items() <= row.items()]
    return {
        "images": curated["counts"]["images"],
        "train_images": trained["counts"]["train"],
        "test_images": ece["n"],
        "train_seconds": trained["seconds"],
        "epochs": trained["counts"]["epochs"],
        **evaluated["outputs"],
        "ece": ece["value"],
    }


def main() -> None:
    """Learn and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images-per-class", type=int, default=400)
    parser.add_argument(
        "--from-shared", type=Path, metavar="DIR", help="the four sources, unpacked"
    )
    parser.add_argument("--max-runtime", type=float, metavar="SECONDS", help="of the training")
    options = parser.parse_args()
    shared = options.from_shared
    seconds = options.max_runtime or (SHARED_SECONDS if shared else DRAWN_SECONDS)
    sources = shared or draw(options.images_per_class)
    with tempfile.TemporaryDirectory(prefix="learning-") as scratch:
        found = learn(sources, Path(scratch), seconds)
    print(json.dumps({"benchmark": "learning", "max_runtime": seconds, **found}))


if __name__ == "__main__":
    main()
