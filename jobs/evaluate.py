"""Judge a model: its predictions beside the labels, into metrics and an HTML report."""

import argparse
import shlex

from cxr_spark import html_pages, job, report
from cxr_spark.evaluate import evaluate
from cxr_spark.judged_images import SEEN
from cxr_spark.session import spark_session
from cxr_spark.tables import Warehouse

EXAMPLES = """examples:
  jobs/evaluate.py --warehouse demo/warehouse --report demo/report.html
  jobs/evaluate.py --warehouse demo/warehouse --model-version V --split val
  jobs/evaluate.py --warehouse demo/warehouse --compare OLDER_VERSION
  jobs/evaluate.py --warehouse demo/warehouse --by-share"""
QUESTION = (
    "SELECT slice, round(value, 3) AS cce, n FROM latest_metrics "
    "WHERE model_version = '{model}' AND split = '{split}' AND class = 'all' AND metric = 'cce'"
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = job.parser("evaluate", __doc__ or "", EXAMPLES)
    options.add_argument("--warehouse", required=True, metavar="DIR", help="folder of the tables")
    options.add_argument("--model-version", metavar="V", help="default: the newest in models")
    options.add_argument("--split", default="test", choices=SEEN, help="default: test")
    options.add_argument("--report", metavar="FILE", help="also write an HTML report there")
    options.add_argument(
        "--compare", metavar="V", help="another model version, judged on the same images"
    )
    options.add_argument(
        "--by-share",
        action="store_true",
        help="how much data it takes: also judge the models trained alike on other shares of train",
    )
    options.add_argument(
        "--allow-missing",
        action="store_true",
        help="count rows without a usable prediction instead of failing",
    )
    return options


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Evaluate, then write the report if one is asked for."""
    warehouse = Warehouse(options.warehouse)
    report_file = html_pages.target(options.report) if options.report else None
    with spark_session("cxr_spark evaluate", run.say) as spark:
        evaluation = evaluate(
            spark,
            warehouse,
            run=run,
            model_version=options.model_version,
            split=options.split,
            allow_missing=options.allow_missing,
            compare=options.compare,
            by_share=options.by_share,
        )
        if report_file is not None:
            report.write(spark, warehouse, evaluation, report_file)
            run.outputs["report"] = str(report_file)
    question = QUESTION.format(model=evaluation.model["model_version"], split=options.split)
    place = shlex.quote(options.warehouse)
    run.next_steps.append(f'jobs/query.py --warehouse {place} "{question}"')


if __name__ == "__main__":
    job.start("evaluate", parser(), main)
