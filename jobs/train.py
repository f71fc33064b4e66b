"""Train a model on the curated images and save it as an artifact."""

import argparse
import shlex
import sys

from cxr_spark import job
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse
from cxr_spark.train import TrainOptions, plan_run, train
from cxr_spark.training_run import check_folder

EXAMPLES = """examples:
  train.py --warehouse warehouse --models models
  train.py --warehouse warehouse --models models --arch densenet121 --epochs 30 --workers 4
  train.py --warehouse warehouse --models models --max-runtime 3600 --resume
The artifact is a new folder MODELS/VERSION, with the weights and a card that says what they are.
SIGTERM stops at a checkpoint. docs/train.md tells the rest."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("train", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument("--models", required=True, help="folder of the model artifacts")
    options.add_argument(
        "--resume",
        action="store_true",
        help="go on with the newest unfinished run; if that has finished, tell its summary again",
    )
    options.add_argument("--dry-run", action="store_true", help="say what would be done")
    job.add_max_runtime(
        options, "fit schedule, last validation and calibration into so many seconds"
    )
    TrainOptions.add_to(options)
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    train_options = TrainOptions.of(options)
    warehouse = Warehouse(options.warehouse)
    # Both refuse at once, before Spark starts.
    warehouse.current("images")
    check_folder(options.models)
    if options.dry_run:
        from cxr_spark import forecast

        plan, _ = plan_run(warehouse, train_options, run)
        forecast.tell(warehouse, plan, run)
        return
    with spark_session("cxr_spark train", run.say) as spark:
        model = train(spark, warehouse, options.models, train_options, run, resume=options.resume)
    run.outputs["model"] = str(model)
    score = ["jobs/score.py", "--warehouse", str(warehouse.root), "--model", str(model)]
    run.next_steps.append(shlex.join([*score, "--split", "all"]))


if __name__ == "__main__":
    job.start("train", parser(), main, records="--dry-run" not in sys.argv)
