"""Ingest the source folders, curate the nine-class data set and publish it."""

import argparse

from cxr_spark import curate, ingest, job, labels
from cxr_spark.images import Preprocessing
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  curate.py --warehouse warehouse --nih NIH_DIR --pneumonia PNEUMONIA_DIR
  curate.py --warehouse warehouse --covid COVID_DIR     add a source; those not named stay
Only new and changed files are read. Each file is a row of images or of rejects, with its reason."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("curate", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    for source in labels.SOURCES:
        options.add_argument(f"--{source}", metavar="DIR", help=f"the {source} source as unpacked")
    options.add_argument(
        "--image-size", type=int, default=224, help="side of the stored squares in pixels"
    )
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    folders = {name: vars(options)[name] for name in labels.SOURCES if vars(options)[name]}
    if not folders:
        raise job.InputError(f"no source is given: at least one of --{', --'.join(labels.SOURCES)}")
    preprocessing = Preprocessing(size=options.image_size)
    warehouse = Warehouse(options.warehouse)
    listed = ingest.list_sources(folders)
    run.lock(warehouse.root, "curate")
    with spark_session("cxr_spark curate", run.say) as spark:
        files, staged = ingest.ingest(spark, warehouse, listed, preprocessing, run)
        images_raw = curate.Change(files, staged)
        curate.curate(spark, warehouse, images_raw, preprocessing, run)
    run.outputs["warehouse"] = str(warehouse.root)


if __name__ == "__main__":
    job.start("curate", parser(), main)
