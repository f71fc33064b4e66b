"""Scoring against a bare loop, Daft and Ray Data with the same engine: images a second, in pairs.

    make bench-score
    .venv/bin/python -m benchmarks.score --kind jpeg --arch resnet18 --images 500 --from DIR

Above 1: scoring is faster. It does more than all of them: hashes, facts, reasons, what it has
scored before, a table that keeps to its contract. All are warmed up, and run in turn on the same
images.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pyspark.sql import SparkSession

from benchmarks import corpus, pairs
from cxr_spark import job, score, score_inputs
from cxr_spark.scoring import Scoring, load_model
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse
from tests import artifacts

CHECKOUT = Path(__file__).resolve().parent.parent
CORPUS = CHECKOUT / "benchmarks/.corpus"
RIVALS = ("bare", "daft", "ray")
SIDE = 224
WARM_UP = 128


def ours(
    spark: SparkSession, kind: str, warehouse: Warehouse, source: Path, scoring: Scoring
) -> tuple[float, int]:
    """Seconds from listing to the last commit into a table that isn't there yet; and the images."""
    shutil.rmtree(warehouse.path("predictions"), ignore_errors=True)
    run = job.Run("score")
    run.quiet = True
    began = time.perf_counter()
    if kind == "pixels":
        listed = score.list_images(warehouse, scoring, run, "all", None)
    else:
        listed = score_inputs.image_files([source], [])
    score.score(spark, warehouse, listed, scoring, run)
    seconds = time.perf_counter() - began
    rows = sum(file.num_rows for file in warehouse.files("predictions"))
    assert rows == len(listed) == run.counts["inferred"], (rows, run.counts)
    return seconds, rows


def rival(name: str, python: str, kind: str, model: str, source: Path) -> tuple[float, int]:
    """Seconds of a rival in its own process and environment."""
    interpreter = sys.executable if name == "bare" else python
    out = tempfile.mkdtemp(prefix="score-")
    done = subprocess.run(
        [interpreter, "-m", "benchmarks.score_rivals", name, kind, model, str(source), out],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return found["seconds"], found["images"]


def curated(images: int, folder: str | None) -> Warehouse:
    """A warehouse whose images are those of a corpus, made once."""
    source = corpus.make("png", images, CORPUS, folder)
    warehouse = Warehouse(CORPUS / f"curated-{images}")
    if not warehouse.published():
        command = [sys.executable, "jobs/curate.py", "--warehouse", str(warehouse.root)]
        command += ["--tuberculosis", str(source), "--image-size", str(SIDE)]
        subprocess.run(command, cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL)
    return warehouse


def inputs(kind: str, images: int, folder: str | None) -> tuple[Warehouse, Path]:
    """The warehouse to score into, and what a rival reads."""
    if kind != "pixels":
        return Warehouse(tempfile.mkdtemp(prefix="score-")), corpus.make(
            kind, images, CORPUS, folder
        )
    warehouse = curated(images, folder)
    linked = Path(tempfile.mkdtemp(prefix="pixels-"))  # the files of the version, and no others
    for number, file in enumerate(warehouse.files("images", warehouse.current("images"))):
        (linked / f"{number}.parquet").symlink_to(file.path)
    return warehouse, linked


def main() -> None:
    """Measure and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("pixels", "png", "jpeg"), default="pixels")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", default=",".join(RIVALS), help="of them, daft-torch, ray-torch")
    parser.add_argument("--python", default=".venv-bench/bin/python", help="of Daft and Ray")
    parser.add_argument("--from", dest="folder", help="folder of pictures to vary (else drawn)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as models:
        model = artifacts.save(Path(models), architecture=options.arch, size=SIDE)
        scoring = Scoring((load_model(model),))
        warehouse, source = inputs(options.kind, options.images, options.folder)
        warm_in = corpus.make("png", WARM_UP, CORPUS, options.folder)
        warm_out = Warehouse(tempfile.mkdtemp(prefix="score-"))
        rates: dict[str, list[float]] = {}
        with spark_session("bench score") as spark:
            for _ in range(options.rounds):
                # The JVM compiles what it has run often; workers that idle for a minute end.
                ours(spark, "png", warm_out, warm_in, scoring)
                found = {"score": ours(spark, options.kind, warehouse, source, scoring)}
                for name in options.rivals.split(","):
                    found[name] = rival(name, options.python, options.kind, str(model), source)
                assert len({images for _, images in found.values()}) == 1, found
                for name, (seconds, images) in found.items():
                    rates.setdefault(name, []).append(images / seconds)
                print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)
    ratios = pairs.ratios(rates, "score")
    summary = {
        "benchmark": "score",
        "kind": options.kind,
        "arch": options.arch,
        "images": images,
        "images_per_second": pairs.medians(rates, 2),
        "score_over": pairs.medians(ratios, 3),
        "pairs": ratios,
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
