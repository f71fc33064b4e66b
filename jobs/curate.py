"""Ingest the source folders, curate the nine-class data set and publish it."""

import argparse
import shlex
from pathlib import Path

from cxr_spark import curate, curation_report, html_pages, ingest, job, labels, ledger
from cxr_spark.images import FITS, Preprocessing
from cxr_spark.manifest import parse_manifests
from cxr_spark.pseudonyms import find_salt, keep_salt, salt_id
from cxr_spark.selection import Policy, selection_of
from cxr_spark.session import spark_session
from cxr_spark.splits import SPLIT_POLICIES, Ratios
from cxr_spark.tables import CurateRun, Warehouse

EXAMPLES = """examples:
  curate.py --warehouse warehouse --nih NIH_DIR --pneumonia PNEUMONIA_DIR
  curate.py --warehouse warehouse --covid COVID_DIR     add a source; those not named stay
  curate.py --warehouse warehouse --manifest mercy=/archive/mercy.csv
  curate.py --warehouse warehouse --nih NIH_DIR --label-policy sole-target --cap "No Finding=5000"
  curate.py --warehouse warehouse --nih NIH_DIR --select "nih=Edema,Effusion,No Finding" --full
Only new and changed files are read. Each file is a row of images or of rejects, with its reason.
docs/curation.md tells of manifests, reasons, policies, duplicates and splits."""


def parser() -> argparse.ArgumentParser:
    """The options of the job."""
    options = job.parser("curate", __doc__, EXAMPLES)
    options.add_argument("--warehouse", required=True, help="folder of the Delta tables")
    for source in labels.SOURCES:
        options.add_argument(f"--{source}", metavar="DIR", help=f"the {source} source as unpacked")
    options.add_argument(
        "--manifest",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="images of your own: a CSV or Parquet file with path, label, optionally patient_id, "
        "view, sex, age, split; may be given several times",
    )
    options.add_argument(
        "--salt-file",
        metavar="FILE",
        help="salt of the patients' hashes (default WAREHOUSE/salt, made at first use): keep it",
    )
    pixels = options.add_argument_group("pixels")
    pixels.add_argument(
        "--image-size", type=int, default=224, help="side of the stored squares in pixels (224)"
    )
    pixels.add_argument(
        "--fit", choices=FITS, default="crop", help="how an image becomes square (crop)"
    )
    _add_policy(options.add_argument_group("what is an image of the data set"))
    runs = options.add_argument_group("the run")
    runs.add_argument("--strict", action="store_true", help="the audit's warnings refuse too")
    runs.add_argument("--report", metavar="FILE", help="write an HTML report of the run here")
    runs.add_argument("--full", action="store_true", help="start over: read all, split all afresh")
    runs.add_argument(
        "--commit-every",
        type=int,
        default=ingest.PIECE_FILES,
        metavar="N",
        help=f"files decoded between two commits, lost by a kill ({ingest.PIECE_FILES})",
    )
    return options


def _add_policy(options: argparse._ArgumentGroup) -> None:
    options.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="SOURCE=CLASS,...",
        help="the classes that a source gives; may be given several times",
    )
    options.add_argument(
        "--label-policy",
        choices=labels.LABEL_POLICIES,
        default=labels.LABEL_POLICIES[0],
        help="sole: one finding alone; sole-target: one of the nine, other findings allowed (sole)",
    )
    options.add_argument(
        "--cap",
        action="append",
        default=[],
        metavar="CLASS=N",
        help="the most images of a class; may be given several times",
    )
    options.add_argument(
        "--split-policy",
        choices=SPLIT_POLICIES,
        default=SPLIT_POLICIES[0],
        help="official: NIH's test list is test; hash: no list counts (official)",
    )
    options.add_argument(
        "--ratios", default=str(Ratios()), metavar="TRAIN,VAL,TEST", help=f"of groups ({Ratios()})"
    )


def _policy(options: argparse.Namespace, before: CurateRun | None, named: list[str]) -> Policy:
    """The rules asked for; sources that this run doesn't name stay as they were selected."""
    sources = [*named, *ledger.sources(before.counts)] if before else named
    selected = selection_of(before.arguments) if before else {}
    unnamed = {source: classes for source, classes in selected.items() if source not in named}
    return Policy(
        labels.parse_selection(options.select, sources, unnamed),
        options.label_policy,
        labels.parse_caps(options.cap),
        options.split_policy,
        Ratios.parse(options.ratios),
    )


def _check_salt(salt: bytes, file: Path, before: CurateRun | None) -> None:
    """Whatever is named: what this run hashes under is recorded as the salt of the warehouse."""
    if before and before.arguments.get("salt", salt_id(salt)) != salt_id(salt):
        raise job.InputError(
            f"{file} is not the salt of this warehouse: every patient would be a new one. "
            "Bring back the file that was used, or curate into another warehouse"
        )


def main(options: argparse.Namespace, run: job.Run) -> None:
    """Run the job."""
    folders = {name: vars(options)[name] for name in labels.SOURCES if vars(options)[name]}
    manifests = parse_manifests(options.manifest)
    if not folders and not manifests:
        named = ", --".join((*labels.SOURCES, "manifest"))
        raise job.InputError(f"no source is given: at least one of --{named}")
    if options.commit_every < 1:
        raise job.InputError(f"--commit-every {options.commit_every}: at least one file")
    report = html_pages.target(options.report) if options.report else None
    preprocessing = Preprocessing(size=options.image_size, fit=options.fit)
    warehouse = Warehouse(options.warehouse)
    before = warehouse.published_run()
    policy = _policy(options, before, [*folders, *manifests])
    salt_file = Path(options.salt_file or warehouse.root / "salt")
    salt = find_salt(salt_file)
    _check_salt(salt, salt_file, before)
    run.resolved["salt"] = salt_id(salt)
    listed = ingest.list_sources(folders, manifests, salt)
    run.lock(warehouse.root, "curate")
    keep_salt(salt_file, salt)  # after all that can be wrong with the arguments
    reading = ingest.Reading(preprocessing, salt, options.commit_every, options.full)
    with spark_session("cxr_spark curate", run.say) as spark:
        files = curate.Change(*ingest.ingest(spark, warehouse, listed, reading, run))
        curate.curate(
            spark,
            warehouse,
            files,
            preprocessing,
            policy,
            run,
            afresh=options.full,
            strict=options.strict,
        )
        if report:
            run.say("writing the report")
            curation_report.write(spark, warehouse, run, report)
            run.outputs["report"] = str(report)
    run.outputs["warehouse"] = str(warehouse.root)
    train = ["jobs/train.py", "--warehouse", str(warehouse.root), "--models", "models"]
    run.next_steps.append(shlex.join(train))


if __name__ == "__main__":
    job.start("curate", parser(), main)
