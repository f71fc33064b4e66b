"""Score images with a trained model, those that it has not scored yet, into predictions."""

import argparse

from cxr_spark import job, score
from cxr_spark.artifact import load_card
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  score.py --warehouse warehouse --model models/VERSION --split test
  score.py --warehouse warehouse --model models/VERSION --input /archive/2026-11-23
A bad image is a row with an error; a rerun scores only what is new or changed."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("score", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument("--model", required=True, help="the artifact's folder, <models>/<version>")
    what = options.add_mutually_exclusive_group(required=True)
    splits = ("train", "val", "test", "all")
    what.add_argument("--split", choices=splits, help="score curated images of this split")
    what.add_argument(
        "--input", nargs="+", action="extend", metavar="DIR", help="score the image files below"
    )
    options.add_argument(
        "--images-version", type=int, metavar="V", help="of the curated images (the published one)"
    )
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    if options.input and options.images_version is not None:
        raise job.InputError("--images-version goes with --split, not with --input")
    warehouse = Warehouse(options.warehouse)
    version = load_card(options.model).model_version
    run.extra["model_version"] = version
    with spark_session("cxr_spark score", run.say) as spark:
        if options.input:
            run.lock(warehouse.root, f"score-{version}")
            score.score_folders(spark, warehouse, options.model, options.input, run)
        else:
            warehouse.current("images")
            run.lock(warehouse.root, f"score-{version}")
            score.score_images(
                spark,
                warehouse,
                options.model,
                run,
                split=options.split,
                images_version=options.images_version,
            )


if __name__ == "__main__":
    job.start("score", parser(), main)
