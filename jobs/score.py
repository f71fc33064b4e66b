"""Score images with trained models, those that they have not scored yet, into predictions."""

import argparse
import contextlib
import shlex
from typing import Any

from cxr_spark import drift, engines, explanations, job, score, score_inputs, submission
from cxr_spark.scoring import COMMIT_EVERY, Scoring, claim_ensemble, load_model
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  score.py --warehouse warehouse --model models/VERSION --split test
  score.py --warehouse warehouse --model models/VERSION --input /archive/2026-11-23
  score.py --warehouse warehouse --model models/A --model models/B --ensemble both --input /archive
A bad image is a row with an error; a rerun scores only what is new or changed."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("score", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="DIR",
        help="the artifact's folder, <models>/<version>; several: all in one pass",
    )
    options.add_argument(
        "--ensemble", metavar="NAME", help="also rows of the models' mean, as model_version NAME"
    )
    what = options.add_argument_group("what is scored: --split, or --input and --paths")
    splits = ("train", "val", "test", "all")
    what.add_argument("--split", choices=splits, help="curated images of this split")
    what.add_argument(
        "--images-version", type=int, metavar="V", help="of the curated images (the published one)"
    )
    many: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    what.add_argument("--input", metavar="DIR", help="the image files below", **many)
    what.add_argument(
        "--paths",
        metavar="FILE",
        help="the files named in the column path of a Delta table, Parquet or CSV",
        **many,
    )
    what.add_argument("--rescore", action="store_true", help="what has been scored, too")
    how = options.add_argument_group("how")
    how.add_argument("--engine", choices=engines.ENGINES, default="auto", help="(%(default)s)")
    how.add_argument(
        "--commit-every",
        type=int,
        default=COMMIT_EVERY,
        metavar="N",
        help="images between two commits, at most; what a kill costs (%(default)s)",
    )
    job.add_max_runtime(how, "end after the piece at work then; a rerun goes on from there")
    job.add_metrics_file(how)
    how.add_argument(
        "--explain",
        metavar="IMAGE",
        help="also Grad-CAM overlays of these image ids or paths, or of `all` that are listed",
        **many,
    )
    how.add_argument("--submission", metavar="FILE", help="also a CSV of id and probabilities")
    drift.add_options(options.add_argument_group("the drift guard, on files"))
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    is_of_files = bool(options.input or options.paths)
    if is_of_files == bool(options.split):
        raise job.InputError("give either --split, or --input or --paths, or both of these")
    if is_of_files and options.images_version is not None:
        raise job.InputError("--images-version goes with --split")
    scoring = Scoring(
        tuple(load_model(folder) for folder in options.model),
        options.ensemble,
        options.rescore,
        options.commit_every,
        options.engine,
    )
    if options.submission and len(scoring.model_versions) > 1 and not scoring.ensemble:
        raise job.InputError("--submission goes with one --model, or with an --ensemble")
    place = submission.target(options.submission) if options.submission else None
    warehouse = Warehouse(options.warehouse)
    guard = drift.guard_of(options, warehouse)
    if is_of_files:
        listed = score_inputs.image_files(options.input, options.paths)
    else:
        listed = score.list_images(warehouse, scoring, run, options.split, options.images_version)
    if place:
        submission.check_ids(listed)
    chosen = explanations.choose(listed, options.explain) if options.explain else None
    for version in sorted(scoring.model_versions):
        run.lock(warehouse.root, f"score-{version}")
    run.resolved |= claim_ensemble(warehouse, scoring)
    run.extra["model_version"] = scoring.model_versions[-1]
    run.outputs["predictions"] = warehouse.path("predictions")
    run.next_steps.append(_next_step(warehouse, scoring, options.split))
    with contextlib.ExitStack() as stack:
        spark = stack.enter_context(spark_session("cxr_spark score", run.say))
        if is_of_files:
            versions = scoring.model_versions
            stack.enter_context(drift.watching(spark, warehouse, run, versions, guard))
        score.score(spark, warehouse, listed, scoring, run)
        if place:
            submission.write(place, listed, warehouse, scoring, run)
        if chosen is not None:
            explanations.write(spark, warehouse, chosen, scoring, run)


def _next_step(warehouse: Warehouse, scoring: Scoring, split: str | None) -> str:
    on = ["--warehouse", str(warehouse.root)]
    if split is None:
        question = "SELECT predicted_label, count(*) FROM latest_predictions GROUP BY ALL"
        return shlex.join(["jobs/query.py", *on, question])
    judged = ["--model-version", scoring.card.model_version]
    if split != "all":
        judged += ["--split", split]
    return shlex.join(["jobs/evaluate.py", *on, *judged, "--report", "report.html"])


if __name__ == "__main__":
    job.start("score", parser(), main)
