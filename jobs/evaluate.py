"""Judge a model: its predictions beside the labels, into metrics and an HTML report."""

import argparse

from cxr_spark import job, report
from cxr_spark.evaluate import SEEN, evaluate
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  jobs/evaluate.py --warehouse demo/warehouse --report demo/report.html
  jobs/evaluate.py --warehouse demo/warehouse --model-version V --split val"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = job.parser("evaluate", __doc__ or "", EXAMPLES)
    options.add_argument("--warehouse", required=True, metavar="DIR", help="folder of the tables")
    options.add_argument("--model-version", metavar="V", help="default: the newest in models")
    options.add_argument("--split", default="test", choices=SEEN, help="default: test")
    options.add_argument("--report", metavar="FILE", help="also write an HTML report there")
    options.add_argument(
        "--allow-missing",
        action="store_true",
        help="count rows without a usable prediction instead of failing",
    )
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Evaluate, then write the report if one is asked for."""
    warehouse = Warehouse(options.warehouse)
    report_file = report.target(options.report) if options.report else None
    with spark_session("cxr_spark evaluate", run.say) as spark:
        evaluation = evaluate(
            spark,
            warehouse,
            run=run,
            model_version=options.model_version,
            split=options.split,
            allow_missing=options.allow_missing,
        )
        if report_file is not None:
            report.write(spark, warehouse, evaluation, report_file)
            run.outputs["report"] = str(report_file)


if __name__ == "__main__":
    job.start("evaluate", parser(), main)
