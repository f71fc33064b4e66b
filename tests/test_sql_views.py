"""The derived views, over a warehouse of a few rows whose answers are plain to see."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from cxr_spark import sql, sql_gate, sql_views
from cxr_spark.sql_errors import InvalidQuery
from cxr_spark.sql_gate import NotAllowed
from cxr_spark.sql_views import VIEWS
from cxr_spark.tables import PUBLISHED, TABLES, Warehouse
from tests.test_sql import Notes, rows


def day(number: int) -> datetime:
    return datetime(2026, 1, number, tzinfo=UTC)


def prediction(name: str, model: str, label: str | None, at: int, **more: object) -> dict:
    return {
        "image_id": name,
        "content_sha256": f"content of {name}",
        "model_version": model,
        "predicted_label": label,
        "confidence": 0.5 if label else None,
        "error": None if label else "truncated",
        "scored_at": day(at),
        "run_id": f"score-{at}",
        **more,
    }


def figure(value: float, predictions_version: int, slice_name: str = "all") -> dict:
    return {
        "model_version": "zeta",
        "images_version": 0,
        "predictions_version": predictions_version,
        "split": "test",
        "slice": slice_name,
        "class": "all",
        "metric": "cce",
        "value": value,
        "run_id": "evaluate",
        "evaluated_at": day(20),
    }


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Model zeta is older than alpha, whatever their names say; stray is in no row of models."""
    made = Warehouse(tmp_path_factory.mktemp("views") / "warehouse")
    scored = [
        prediction("a", "zeta", "Covid", 1),
        prediction("a", "zeta", "Edema", 2),
        prediction("b", "zeta", None, 1),
        prediction("b", "zeta", "Edema", 2),
        prediction("c", "zeta", None, 1),
        prediction("a", "alpha", "Covid", 3),
        prediction("b", "alpha", "Edema", 3),
        prediction("c", "alpha", "Covid", 3),
        prediction("b", "stray", "Covid", 4),
        prediction("d", "zeta", "Covid", 2),
        prediction("d", "alpha", "Edema", 3, content_sha256="another picture by now"),
    ]
    made.append_rows("predictions", scored)
    for version, number in (("alpha", 9), ("zeta", 5)):
        row = {"model_version": version, "created_at": day(number), "run_id": "train"}
        made.append_rows("models", [row])
    made.append_rows("metrics", [figure(0.9, 1), figure(0.8, 1, "source=covid")])
    made.append_rows("metrics", [figure(0.7, 2)])
    images = [("nih", "Edema"), ("nih", "Edema"), ("nih", "Covid"), ("covid", "Covid")]
    listed = [
        {"image_id": f"{source}:{place}", "source": source, "run_id": "curate"}
        for place, (source, _) in enumerate([*images, ("nih", "")])
    ]
    published = {
        "images": made.append_rows(
            "images",
            [
                {**row, "label": label, "split": "train"}
                for row, (_, label) in zip(listed, images, strict=False)
            ],
        ),
        "images_raw": made.append_rows("images_raw", listed),
        "rejects": made.append_rows("rejects", [{**listed[-1], "reason": "truncated"}]),
    }
    run = {"run_id": "curate", "job": "curate", "status": "finished", "finished_at": day(1)}
    made.append_rows("runs", [run | {"versions_written": published}])
    return made


@pytest.fixture(scope="module")
def views(spark: SparkSession, warehouse: Warehouse) -> sql.Views:
    return sql.Views(spark, warehouse, {}, Notes())


def test_latest_predictions_has_the_newest_row_of_each_image_and_model_version(
    views: sql.Views,
) -> None:
    query = "SELECT image_id, predicted_label FROM latest_predictions WHERE model_version = 'zeta'"
    assert set(rows(views, query)) == {("a", "Edema"), ("b", "Edema"), ("c", None), ("d", "Covid")}
    assert rows(views, "SELECT count(*) FROM latest_predictions") == [(9,)]


def test_the_newest_model_is_the_one_created_last(views: sql.Views) -> None:
    query = "SELECT DISTINCT model_version FROM newest_model_predictions"
    assert rows(views, query) == [("alpha",)]


def scored_by(warehouse: Warehouse, *model_versions: str) -> None:
    """One image scored by models that were created a day apart."""
    for number, version in enumerate(model_versions, start=1):
        row = {"model_version": version, "created_at": day(number), "run_id": "train"}
        warehouse.append_rows("models", [row])
        warehouse.append_rows("predictions", [prediction("a", version, "Covid", number)])


def test_the_newest_model_of_a_pinned_version_of_models_is_the_newest_in_that_version(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    scored_by(warehouse, "old", "new")
    query = "SELECT model_version FROM newest_model_predictions"
    assert rows(sql.Views(spark, warehouse, {}, Notes()), query) == [("new",)]
    assert rows(sql.Views(spark, warehouse, {"models": 0}, Notes()), query) == [("old",)]


def test_prediction_errors_leave_out_what_was_scored_later(views: sql.Views) -> None:
    query = "SELECT model_version, image_id, error FROM prediction_errors"
    assert rows(views, query) == [("zeta", "c", "truncated")]


def test_model_comparison_has_the_changed_labels_of_one_picture_with_the_older_model_first(
    views: sql.Views,
) -> None:
    query = "SELECT older_version, newer_version, image_id, older_label, newer_label "
    assert set(rows(views, query + "FROM model_comparison")) == {
        ("zeta", "alpha", "a", "Edema", "Covid"),
        ("stray", "zeta", "b", "Covid", "Edema"),
        ("stray", "alpha", "b", "Covid", "Edema"),
    }


def test_class_balance_counts_and_its_shares_of_split_and_source_add_up(views: sql.Views) -> None:
    query = "SELECT source, label, images, share_of_split, share_of_source FROM class_balance"
    assert set(rows(views, query)) == {
        ("nih", "Edema", 2, 0.5, 2 / 3),
        ("nih", "Covid", 1, 0.25, 1 / 3),
        ("covid", "Covid", 1, 0.25, 1.0),
    }


def test_reject_summary_sets_the_rejects_against_all_that_a_source_lists(views: sql.Views) -> None:
    assert rows(views, "SELECT * FROM reject_summary") == [("nih", "truncated", 1, 0.25, "nih:4")]


def test_latest_metrics_are_of_one_evaluation_alone(views: sql.Views) -> None:
    assert rows(views, "SELECT slice, value FROM latest_metrics") == [("all", 0.7)]


def test_a_derived_view_reads_its_tables_at_the_versions_that_the_statement_reads(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    notes = Notes()
    pinned = sql.Views(spark, warehouse, {"metrics": 0}, notes)
    query = "SELECT (SELECT count(*) FROM metrics), (SELECT count(*) FROM latest_metrics)"
    assert rows(pinned, query) == [(2, 2)]
    assert notes.versions_read == {"metrics": 0}


def test_a_derived_view_follows_its_tables(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    views = sql.Views(spark, warehouse, {}, Notes())
    query = "SELECT count(*) FROM prediction_errors"
    assert rows(views, query) == [(0,)]
    warehouse.append_rows("predictions", [prediction("a", "m", None, 1)])
    assert rows(views, query) == [(1,)]


def test_a_name_in_a_query_cannot_take_the_place_of_a_table_below_a_derived_view(
    views: sql.Views,
) -> None:
    query = """WITH predictions AS (SELECT 'x' AS image_id), latest_metrics AS (SELECT 7 AS seven)
        SELECT (SELECT count(*) FROM latest_predictions), (SELECT max(seven) FROM latest_metrics)"""
    assert rows(views, query) == [(9, 7)]
    with pytest.raises(NotAllowed, match="CreateViewCommand"):
        views.query("CREATE OR REPLACE TEMPORARY VIEW latest_predictions AS SELECT 1")


@pytest.mark.parametrize("name", VIEWS)
def test_a_derived_view_passes_the_gate_and_names_what_it_reads(
    views: sql.Views, name: str
) -> None:
    before = list(VIEWS)[: list(VIEWS).index(name)]
    known = {*TABLES, *before}
    read = sql_gate.check(views._parse(VIEWS[name].text), known)
    assert set(VIEWS[name].reads) == read


def test_what_a_view_is_can_be_told_without_a_warehouse_and_is_what_it_gives(
    spark: SparkSession, views: sql.Views, tmp_path: Path
) -> None:
    elsewhere = sql.Views(spark, Warehouse(tmp_path), {}, Notes())
    for name in views.names():
        schema, description = elsewhere.describe(name)
        assert schema.names == views.query(f"SELECT * FROM {name}").columns
        assert description.endswith(".")
    assert elsewhere.run.said == []


def test_all_published_tables_below_the_views_are_known() -> None:
    assert sql_views.behind(["reject_summary"]) == {"images_raw", "rejects"} < set(PUBLISHED)
    assert sql_views.behind(["model_comparison"]) == {"latest_predictions", "predictions", "models"}


def test_a_parameter_is_a_value_and_never_a_part_of_the_query(views: sql.Views) -> None:
    query = "SELECT count(*) FROM predictions WHERE predicted_label = :label"
    assert [tuple(r) for r in views.query(query, {"label": "Covid"}).collect()] == [(5,)]
    hostile = {"label": "Covid' OR '1' = '1"}
    assert [tuple(r) for r in views.query(query, hostile).collect()] == [(0,)]


def test_parameters_are_bound_wherever_a_value_may_stand(views: sql.Views) -> None:
    query = """WITH some AS (SELECT * FROM latest_predictions WHERE scored_at >= :since)
        SELECT image_id FROM some WHERE model_version IN (SELECT :model) AND confidence < :below
        ORDER BY image_id LIMIT :n"""
    values = {"since": day(3).date(), "model": "alpha", "below": 0.75, "n": 2}
    assert [tuple(r) for r in views.query(query, values).collect()] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("query", "values", "message"),
    [
        ("SELECT :a, :b", {"a": 1}, "no value for :b"),
        ("SELECT :a", {"a": 1, "b": 2}, "no :b"),
        ("SHOW TABLES", {"b": 2}, "no :b"),
        ("DESCRIBE models", {"b": 2}, "no :b"),
    ],
)
def test_a_parameter_without_a_value_and_a_value_without_a_parameter_are_refused(
    views: sql.Views, query: str, values: dict, message: str
) -> None:
    with pytest.raises(InvalidQuery, match=message):
        views.query(query, values)


def test_a_query_for_one_day_reads_no_row_group_of_another(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    scored = [prediction(f"of day {number}", "m", "Covid", number) for number in (1, 2, 3)]
    warehouse.append_rows("predictions", scored)
    (file,) = warehouse.files("predictions")
    pq.write_table(pq.ParquetFile(file.path).read(), file.path, row_group_size=1)
    footer, content = pq.read_metadata(file.path), bytearray(Path(file.path).read_bytes())
    for group in (footer.row_group(0), footer.row_group(2)):
        for column in map(group.column, range(group.num_columns)):
            begin = column.dictionary_page_offset or column.data_page_offset
            content[begin : begin + column.total_compressed_size] = bytes(
                column.total_compressed_size
            )
    Path(file.path).write_bytes(content)
    views = sql.Views(spark, warehouse, {}, Notes())
    query = "SELECT image_id FROM predictions"
    of_a_day = f"{query} WHERE scored_at >= '2026-01-02' AND scored_at < '2026-01-03'"
    assert rows(views, of_a_day) == [("of day 2",)]
    with pytest.raises(Py4JJavaError, match="parquet"):
        rows(views, query)


def test_a_query_for_one_model_version_opens_no_file_of_another(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    scored_by(warehouse, "other", "wanted")
    for file in warehouse.files("predictions"):
        if file.partition["model_version"] == "other":
            Path(file.path).write_bytes(b"not Parquet, nor to be opened")
    views = sql.Views(spark, warehouse, {}, Notes())
    for query in (
        "SELECT predicted_label FROM predictions WHERE model_version = 'wanted'",
        "SELECT predicted_label FROM latest_predictions WHERE model_version = 'wanted'",
        "SELECT predicted_label FROM newest_model_predictions",
    ):
        assert rows(views, query) == [("Covid",)]
    query = "SELECT predicted_label FROM latest_predictions WHERE model_version = :version"
    assert len(views.query(query, {"version": "wanted"}).collect()) == 1
