"""The whole chain as a user runs it: six jobs, four sources in, SQL on predictions out."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import chdb
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from cxr_spark.figures import HEADLINE
from cxr_spark.labels import CLASSES
from cxr_spark.tables import TABLES, Warehouse
from tests.conftest import REPOSITORY, Chain, run_job, source_options

COUNTED = ("images_raw", "pixels", "images", "rejects", "predictions", "metrics", "models", "runs")


@pytest.fixture(scope="module")
def warehouse(chain: Chain) -> Warehouse:
    return Warehouse(chain.warehouse)


def test_every_job_finished_with_a_summary_and_a_runs_row(
    spark: SparkSession, chain: Chain, warehouse: Warehouse
) -> None:
    summaries = [chain.curate, chain.train, chain.score, chain.evaluate]
    keys = {"job", "run_id", "status", "exit_code", "seconds", "counts", "versions", "outputs"}
    assert all(keys <= summary.keys() for summary in summaries)
    rows = {row.run_id: row for row in warehouse.read(spark, "runs").collect()}
    assert [rows[summary["run_id"]].job for summary in summaries] == [
        "curate",
        "train",
        "score",
        "evaluate",
    ]
    assert {rows[summary["run_id"]].status for summary in summaries} == {"finished"}
    # Reads name the version that they read.
    images = chain.curate["versions"]["images"]
    assert rows[chain.train["run_id"]].versions_read["images"] == images
    assert rows[chain.score["run_id"]].versions_read["images"] == images
    assert (
        rows[chain.evaluate["run_id"]].versions_read["predictions"]
        == (chain.score["versions"]["predictions"])
    )


def test_a_newcomer_reads_the_words_of_the_jobs_and_nothing_else(chain: Chain) -> None:
    for job in ("sample", "curate", "train", "score", "evaluate"):
        ours = (f"[{job}] ", "epoch ")  # the ranks of training tell their epochs themselves
        strange = [line for line in chain.said[job].splitlines() if not line.startswith(ours)]
        assert strange == [], job
        assert f"[{job}]   next" in chain.said[job]


def test_curation_keeps_eight_images_of_each_class(
    spark: SparkSession, chain: Chain, warehouse: Warehouse
) -> None:
    images = warehouse.read(spark, "images")
    assert {row.label: row["count"] for row in images.groupBy("label").count().collect()} == {
        label: 8 for label in CLASSES
    }


def test_files_listed_are_images_and_rejects_per_source(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    def per_source(name: str) -> Counter[str]:
        rows = warehouse.read(spark, name).groupBy("source").count().collect()
        return Counter({row.source: row["count"] for row in rows})

    listed = per_source("images_raw")
    assert set(listed) == {"nih", "covid", "pneumonia", "tuberculosis"}
    assert listed == per_source("images") + per_source("rejects")


def test_no_group_is_in_two_splits_and_no_picture_is_there_twice(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    images = warehouse.read(spark, "images")
    groups = images.groupBy("group_id").agg(F.count_distinct("split").alias("splits"))
    assert groups.where("splits > 1").count() == 0
    for column in ("image_id", "content_sha256", "pixel_sha256"):
        assert images.select(column).distinct().count() == images.count()
    official = images.join(
        warehouse.read(spark, "images_raw").select("image_id", "official_split"), "image_id"
    )
    assert official.where("official_split = 'test' AND split <> 'test'").count() == 0
    assert official.where("official_split = 'train_val' AND split = 'test'").count() == 0


def test_the_traps_of_the_sources_are_rejects_with_their_reason(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    reasons = {row.reason for row in warehouse.read(spark, "rejects").collect()}
    assert {
        "class_not_selected",
        "duplicate",
        "empty_file",
        "label_conflict",
        "missing_file",
        "multi_label",
        "no_target_label",
        "not_in_manifest",
        "truncated",
        "unreadable",
    } <= reasons


def test_a_rerun_of_curate_commits_nothing_but_its_runs_row(
    chain: Chain, warehouse: Warehouse
) -> None:
    before = {name: warehouse.version(name) for name in TABLES}
    options = source_options(chain.sources)
    on = ("--warehouse", chain.warehouse, *options, "--image-size", 64)
    done = run_job("curate", "--quiet", *on)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.summary["counts"]["decoded"] == 0
    after = {name: warehouse.version(name) for name in TABLES}
    assert after == before | {"runs": before["runs"] + 1}


def test_a_rerun_of_score_scores_nothing(chain: Chain, warehouse: Warehouse) -> None:
    before = warehouse.version("predictions")
    model = chain.train["model"]
    on = ("--warehouse", chain.warehouse, "--model", model, "--split", "all")
    done = run_job("score", "--verbose", *on)
    assert done.exit_code == 0, done.stderr
    assert "INFO SparkContext" in done.stderr  # Spark's own log, which nobody else gets
    assert done.summary["counts"]["scored"] == 0
    assert warehouse.version("predictions") == before


def test_the_headline_stands_beside_its_baselines(
    spark: SparkSession, chain: Chain, warehouse: Warehouse
) -> None:
    of_test = "split = 'test' AND slice = 'all' AND class = 'all'"
    rows = warehouse.read(spark, "metrics").where(of_test).collect()
    metrics = {row.metric: row for row in rows}
    assert {*HEADLINE, "source_share_of_gain"} <= metrics.keys()
    for name in HEADLINE:
        assert 0 < metrics[name]["value"] == pytest.approx(chain.evaluate["outputs"][name])
    assert metrics["cce"]["n"] == metrics["cce_source_only"]["n"] > 0
    page = chain.report.read_text("utf-8")
    assert "<html" in page
    # The ledger of the run that published the images, line by line.
    counts = chain.curate["counts"]
    assert "The ledger: files by source and rule" in page
    assert f"<td>{counts['nih.multi_label']}</td>" in page.split("multi_label")[1].split("</tr>")[0]


def test_sql_joins_predictions_with_images(chain: Chain) -> None:
    sql = (
        "SELECT i.label, count(*) AS images, avg(p.probabilities.covid) AS covid "
        "FROM images i JOIN predictions p USING (image_id) GROUP BY ALL ORDER BY label"
    )
    done = run_job("query", "--warehouse", chain.warehouse, "--format", "json", sql)
    rows = json.loads(done.stdout)
    assert [(row["label"], row["images"]) for row in rows] == [(label, 8) for label in CLASSES]
    assert all(0 < row["covid"] < 1 for row in rows)


def test_jobs_run_through_spark_submit_with_its_settings(chain: Chain) -> None:
    """The settings of the command line win over ours, and a heap that comes too late is told."""
    submit = Path(sys.executable).parent / "spark-submit"
    environment = {k: v for k, v in os.environ.items() if k != "PYSPARK_SUBMIT_ARGS"}
    done = subprocess.run(
        [
            submit,
            "--master",
            "local[1]",
            "--conf",
            "spark.sql.session.timeZone=Asia/Tokyo",
            REPOSITORY / "jobs" / "query.py",
            "--warehouse",
            chain.warehouse,
            "--format",
            "json",
            "SELECT string(TIMESTAMP '2026-01-01T00:00:00Z') AS at, count(*) AS n FROM images",
        ],
        capture_output=True,
        text=True,
        env=environment | {"PYSPARK_PYTHON": sys.executable},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: the driver's heap is 1.0 GiB" in done.stderr
    assert json.loads(done.stdout) == [{"at": "2026-01-01 09:00:00", "n": 72}]


def test_an_independent_reader_sees_the_same_rows(
    spark: SparkSession, chain: Chain, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """chDB, by ClickHouse's own reader, which gives partition columns as null, and its default."""
    monkeypatch.chdir(chain.warehouse)  # chDB opens files below the working directory only
    connection = chdb.connect(":memory:")
    for name in COUNTED:
        table = f"deltaLakeLocal('{warehouse.path(name)}')"
        for own in (0, 1):
            sql = f"SELECT count() FROM {table} SETTINGS allow_experimental_delta_kernel_rs={own}"
            counted = int(str(connection.query(sql, "CSV")))
            assert counted == warehouse.read(spark, name, warehouse.version(name)).count()
    columns = "image_id, label, label_index, split, group_id, width, content_sha256"
    table = f"deltaLakeLocal('{warehouse.path('images')}')"
    sql = f"SELECT {columns}, lower(hex(SHA256(pixels))) AS h FROM {table} ORDER BY image_id"
    theirs = [json.loads(line) for line in str(connection.query(sql, "JSONEachRow")).splitlines()]
    images = warehouse.read(spark, "images").withColumn("h", F.sha2("pixels", 256))
    ours = images.select(*columns.split(", "), "h").orderBy("image_id").collect()
    assert theirs == [row.asDict() for row in ours]
    table = f"deltaLakeLocal('{warehouse.path('predictions')}')"
    sql = f"SELECT image_id, model_version, probabilities FROM {table} ORDER BY image_id"
    theirs = [json.loads(line) for line in str(connection.query(sql, "JSONEachRow")).splitlines()]
    ours = warehouse.read(spark, "predictions").orderBy("image_id").collect()
    assert [tuple(row.values()) for row in theirs] == [
        (row.image_id, row.model_version, row.probabilities.asDict()) for row in ours
    ]


def test_every_file_of_images_has_one_row_group_and_opens_with_pyarrow(
    warehouse: Warehouse,
) -> None:
    for file in warehouse.files("images"):
        footer = pq.read_metadata(file.path)
        assert (footer.num_row_groups, footer.num_rows) == (1, file.num_rows)


@pytest.mark.parametrize(
    "moment", ["auditing", pytest.param("read and decode", marks=pytest.mark.long)]
)
def test_a_killed_curate_publishes_nothing_and_the_rerun_finishes(
    spark: SparkSession, curated: tuple[Path, Any], sources: Path, tmp_path: Path, moment: str
) -> None:
    warehouse = Warehouse(shutil.copytree(curated[0], tmp_path / "warehouse"))
    published = warehouse.published()
    before = sorted(row.image_id for row in warehouse.read(spark, "images").collect())
    # Another size changes every row of images.
    options = ["--warehouse", str(warehouse.root), *source_options(sources), "--image-size", "32"]
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "jobs" / "curate.py", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert warehouse.published() == published
    images = warehouse.read(spark, "images")
    assert sorted(row.image_id for row in images.collect()) == before
    assert {row.image_size for row in images.select("image_size").collect()} == {64}
    done = run_job("curate", *options)
    assert done.exit_code == 0, done.stderr
    images = warehouse.read(spark, "images")
    assert sorted(row.image_id for row in images.collect()) == before
    assert {row.image_size for row in images.select("image_size").collect()} == {32}


def _shared_summary(real_sources: Path, tmp_path: Path) -> dict[str, Any]:
    done = run_job(
        "curate",
        "--warehouse",
        tmp_path / "warehouse",
        *source_options(real_sources),
        "--image-size",
        64,
    )
    assert done.exit_code == 0, done.stderr
    return done.summary


def test_real_images_are_kept_and_refused_as_csv_and_folders_say(
    spark: SparkSession, real_sources: Path, tmp_path: Path
) -> None:
    counts = _shared_summary(real_sources, tmp_path)["counts"]
    warehouse = Warehouse(tmp_path / "warehouse")
    kept = {
        (row.source, row.label): row["count"]
        for row in warehouse.read(spark, "images").groupBy("source", "label").count().collect()
    }
    with (real_sources / "nih" / "Data_Entry_2017.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    here = {path.name for path in (real_sources / "nih").rglob("*.png")}
    sole = Counter(
        row["Finding Labels"]
        for row in rows
        if row["Finding Labels"] in CLASSES and row["Image Index"] in here
    )
    assert {label: n for (source, label), n in kept.items() if source == "nih"} == dict(sole)
    assert counts["nih.listed"] == len(here | {row["Image Index"] for row in rows})

    def names(pattern: str) -> set[str]:
        return {path.name for path in real_sources.glob(pattern) if not path.name.startswith("._")}

    assert kept["pneumonia", "Pneumonia"] == len(names("pneumonia/**/PNEUMONIA/*"))
    assert kept["covid", "Covid"] == len(names("covid/*/COVID19/*"))
    assert kept["tuberculosis", "Tuberculosis"] == len(names("tuberculosis/*/Tuberculosis/*"))
    assert set(kept) == {("nih", label) for label in sole} | {
        ("pneumonia", "Pneumonia"),
        ("covid", "Covid"),
        ("tuberculosis", "Tuberculosis"),
    }
    assert counts["pneumonia.unreadable"] == len(list(real_sources.glob("pneumonia/**/._*")))
