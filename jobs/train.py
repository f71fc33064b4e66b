"""Train a model on the curated images and save it as an artifact."""

import argparse

from cxr_spark import job
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse
from cxr_spark.train import TrainOptions, train

EXAMPLES = """examples:
  train.py --warehouse warehouse --models models
  train.py --warehouse warehouse --models models --arch densenet121 --epochs 30 --workers 4
The artifact is a new folder MODELS/VERSION, with the weights and a card that says what they are."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("train", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    options.add_argument("--models", required=True, help="folder of the model artifacts")
    TrainOptions.add_to(options)
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    train_options = TrainOptions.of(options)
    warehouse = Warehouse(options.warehouse)
    warehouse.current("images")  # refuses at once, before Spark starts
    with spark_session("cxr_spark train", run.say) as spark:
        train(spark, warehouse, options.models, train_options, run)


if __name__ == "__main__":
    job.start("train", parser(), main)
