"""Queries over the views: what they read, what is refused, how errors read."""

import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.sql import SparkSession

from cxr_spark import sql
from cxr_spark.sql_errors import InvalidQuery, QueryFailed, told_clearly
from cxr_spark.sql_gate import NotAllowed
from cxr_spark.sql_views import VIEWS
from cxr_spark.tables import TABLES, NoSuchTable, NoSuchVersion, Warehouse


class Notes:
    """Stands in for a run: keeps what is said and which versions were read."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.versions_read: dict[str, int] = {}

    def say(self, text: str) -> None:
        self.said.append(text)


def image(name: str, label: str) -> dict:
    return {"image_id": f"nih:{name}", "source": "nih", "label": label, "split": "test"}


def model(version: str) -> dict:
    return {"run_id": "train", "model_version": version, "mean": 0.5}


def curate_run(run_id: str, status: str, images_version: int) -> dict:
    return {
        "run_id": run_id,
        "job": "curate",
        "status": status,
        "finished_at": datetime.now(UTC),
        "versions_written": {"images": images_version},
    }


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    """Two appends to images, of which the first is published; models; no predictions."""
    made = Warehouse(tmp_path_factory.mktemp("sql") / "warehouse")
    for name, status in (("a.png", "finished"), ("b.png", "failed")):
        version = made.append_rows("images", [{**image(name, "Covid"), "run_id": "curate"}])
        made.append_rows("runs", [curate_run(f"curate-{version}", status, version)])
    made.append_rows("models", [model("m1")])
    return made


@pytest.fixture(scope="module")
def views(spark: SparkSession, warehouse: Warehouse) -> sql.Views:
    return sql.Views(spark, warehouse, {}, Notes())


def rows(views: sql.Views, query: str) -> list[tuple]:
    return [tuple(row) for row in views.query(query).collect()]


def test_images_are_read_at_the_published_version_though_a_newer_one_exists(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    notes = Notes()
    views = sql.Views(spark, warehouse, {}, notes)
    assert rows(views, "SELECT image_id FROM images") == [("nih:a.png",)]
    assert notes.versions_read == {"images": 1}


def test_a_pin_reads_the_version_it_names(spark: SparkSession, warehouse: Warehouse) -> None:
    views = sql.Views(spark, warehouse, {"images": warehouse.version("images")}, Notes())
    names = rows(views, "SELECT image_id FROM images ORDER BY image_id")
    assert names == [("nih:a.png",), ("nih:b.png",)]


def test_a_table_that_is_not_there_yet_is_an_empty_view_and_says_so(
    spark: SparkSession, warehouse: Warehouse
) -> None:
    notes = Notes()
    views = sql.Views(spark, warehouse, {}, notes)
    query = "SELECT count(*), max(probabilities.no_finding) FROM predictions"
    assert rows(views, query) == [(0, None)]
    assert notes.said == ["predictions: nothing there yet, the view is empty"]


def test_only_the_tables_that_a_query_names_are_opened(
    spark: SparkSession, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    files = warehouse.files
    monkeypatch.setattr(
        warehouse, "files", lambda name, version: opened.append(name) or files(name, version)
    )
    rows(sql.Views(spark, warehouse, {}, Notes()), "SELECT model_version FROM models")
    assert opened == ["models"]


def test_a_table_that_has_not_changed_is_not_opened_again(
    spark: SparkSession, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = sql.Views(spark, warehouse, {}, Notes())
    query = "SELECT model_version FROM models"
    first = rows(views, query)
    monkeypatch.setattr(warehouse, "files", lambda *_: pytest.fail("opened again"))
    assert rows(views, query) == first
    assert views.run.versions_read == {"models": warehouse.version("models")}


def test_each_query_sees_the_versions_of_its_own_time(spark: SparkSession, tmp_path: Path) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.append_rows("models", [model("m1")])
    views = sql.Views(spark, warehouse, {}, Notes())
    assert rows(views, "SELECT count(*) FROM models") == [(1,)]
    warehouse.append_rows("models", [model("m2")])
    assert rows(views, "SELECT count(*) FROM models") == [(2,)]


def test_the_session_of_the_caller_keeps_its_settings_and_gets_no_views(
    spark: SparkSession, views: sql.Views
) -> None:
    sessions = spark._jvm.org.apache.spark.sql.classic.SparkSession
    sessions.setActiveSession(spark._jsparkSession)
    rows(views, "SELECT count(*) FROM images")
    assert sessions.getActiveSession().get().equals(spark._jsparkSession)
    assert spark.conf.get("spark.sql.variable.substitute") == "true"
    assert not spark.catalog.tableExists("images")


def test_show_tables_names_every_table_and_describe_its_columns(views: sql.Views) -> None:
    shown = {name: version for name, version, _ in rows(views, "show tables")}
    assert list(shown) == list(views.names()) == [*TABLES, *VIEWS]
    models = views.warehouse.version("models")
    assert (shown["images"], shown["models"], shown["predictions"]) == (1, models, None)
    described = rows(views, "DESCRIBE models")
    assert ("val_cce", "double", "nats") in described


ANSWERED = {
    "TABLE models": 1,
    "FROM images SELECT image_id": 1,
    "SELECT 1;": 1,
    "VALUES (1, 'a'), (2, upper('b'))": 2,
    "SELECT * FROM range(3) AS r(n) CROSS JOIN images": 3,
    "SELECT IMAGE_ID, i.label FROM Images AS i WHERE label IN ('Covid', 'Edema')": 1,
    "WITH a AS (SELECT 1 AS x), b AS (SELECT x + 1 AS y FROM a) SELECT * FROM b, a": 1,
    "SELECT * FROM (WITH models AS (SELECT 7 AS n) SELECT n FROM models) WHERE n = 7": 1,
    "SELECT * FROM images i WHERE EXISTS (SELECT 1 FROM models) AND i.label = "
    "(SELECT max(label) FROM images) AND i.image_id NOT IN (SELECT model_version FROM models)": 1,
    "SELECT label, count(*) FILTER (WHERE split = 'test') AS n, count(DISTINCT patient_id) "
    "FROM images GROUP BY label HAVING n > 0 ORDER BY n DESC NULLS LAST LIMIT 5 OFFSET 0": 1,
    "SELECT source, label, count(*), grouping(label) FROM images GROUP BY CUBE (source, label)": 4,
    "SELECT source, count(*) FROM images GROUP BY GROUPING SETS ((source), ())": 2,
    "SELECT label, count(*) FROM images GROUP BY source, label WITH ROLLUP": 3,
    "SELECT image_id, row_number() OVER (PARTITION BY label ORDER BY image_id), sum(width) OVER w "
    "FROM images WINDOW w AS (ORDER BY label ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)": 1,
    "SELECT * FROM images PIVOT (count(*) FOR label IN ('Covid', 'Edema'))": 1,
    "SELECT k, v FROM models UNPIVOT INCLUDE NULLS (v FOR k IN (mean, std))": 2,
    "SELECT a.x FROM images LATERAL VIEW explode(array(1, 2)) a AS x": 2,
    "SELECT x FROM images, LATERAL (SELECT images.width AS x)": 1,
    "SELECT i.image_id FROM images i LEFT ANTI JOIN predictions USING (image_id)": 1,
    "SELECT image_id FROM images UNION ALL SELECT model_version FROM models EXCEPT SELECT 'x'": 2,
    "SELECT image_id FROM images TABLESAMPLE (100 PERCENT) REPEATABLE (1)": 1,
    "SELECT * EXCEPT (pixels, boxes) FROM images": 1,
    "FROM images |> WHERE label = 'Covid' |> AGGREGATE count(*) AS n GROUP BY label": 1,
    "FROM images |> EXTEND 1 AS one |> SET one = 2 |> DROP label |> AS t |> LIMIT 1": 1,
    "SELECT transform(array(1, 2), x -> x + 1), aggregate(array(1), 0, (a, x) -> a + x), "
    "map('k', 1)['k'], named_struct('a', 1).a, (1, 2)": 1,
    "SELECT CASE WHEN true THEN 1 END, 1 BETWEEN 0 AND 2, 'a' LIKE 'a%', 'a' ILIKE ANY ('A', 'b'),"
    " 'a' RLIKE 'a', 'a' LIKE ALL ('a%'), 1 <=> null, 7 DIV 2, 7 % 2, 1 << 2, ~1, -1, 'a' || 'b',"
    " '1'::int, try_cast('x' AS int), trim(BOTH ' ' FROM ' a '), position('a' IN 'ba')": 1,
    "SELECT date_trunc('week', now()), EXTRACT(year FROM current_date), current_timestamp, "
    "DATE '2024-01-31' + INTERVAL 1 DAY, dateadd(DAY, 1, current_date()), "
    "datediff(DAY, DATE '2024-01-01', current_date)": 1,
    "SELECT percentile_approx(mean, 0.5), median(mean), percentile_cont(0.5) WITHIN GROUP "
    "(ORDER BY mean), first(model_version IGNORE NULLS), max_by(model_version, mean), "
    "any_value(mean), listagg(model_version, ',') FROM models": 1,
}


@pytest.mark.parametrize("query", ANSWERED)
def test_the_queries_that_people_write_pass_the_gate(views: sql.Views, query: str) -> None:
    assert len(rows(views, query)) == ANSWERED[query]


# A statement, and what its refusal names.
REFUSED = {
    # writes
    "INSERT INTO images SELECT * FROM images": "InsertIntoStatement",
    "INSERT OVERWRITE models SELECT * FROM models": "InsertIntoStatement",
    "FROM images INSERT INTO models SELECT *": "InsertIntoStatement",
    "WITH x AS (SELECT 1) INSERT INTO models SELECT * FROM x": "InsertIntoStatement",
    "INSERT OVERWRITE DIRECTORY '/tmp/out' USING csv SELECT * FROM images": "InsertIntoDir",
    "INSERT OVERWRITE LOCAL DIRECTORY '/tmp/out' USING json SELECT 1": "InsertIntoDir",
    "UPDATE models SET mean = 0": "UpdateTable",
    "DELETE FROM images": "DeleteFromTable",
    "MERGE INTO models USING images ON true WHEN MATCHED THEN DELETE": "MergeIntoTable",
    "TRUNCATE TABLE images": "TruncateTable",
    "LOAD DATA INPATH '/etc/passwd' INTO TABLE models": "LoadData",
    "CREATE TABLE t AS SELECT 1": "CreateTableAsSelect",
    "CREATE TABLE t (a int) USING csv LOCATION '/etc'": "CreateTable",
    "CREATE OR REPLACE TABLE t (a int) USING csv": "ReplaceTable",
    "CREATE OR REPLACE TEMPORARY VIEW images AS SELECT 1": "CreateViewCommand",
    "CREATE GLOBAL TEMPORARY VIEW v AS SELECT 1": "CreateViewCommand",
    "CREATE TEMPORARY VIEW v USING csv OPTIONS (path '/etc/passwd')": "CreateTempViewUsing",
    "CREATE VIEW v AS SELECT 1": "CreateView",
    "CREATE DATABASE d LOCATION '/tmp/d'": "CreateNamespace",
    "CREATE FUNCTION f AS 'java.lang.Runtime'": "CreateFunction",
    "CREATE TEMPORARY FUNCTION f() RETURNS int RETURN 1": "CreateSQLFunctionCommand",
    "DROP VIEW images": "DropView",
    "DROP TABLE images": "DropTable",
    "ALTER VIEW images AS SELECT 1": "AlterViewAs",
    "ALTER TABLE images ADD COLUMNS (x int)": "AddColumns",
    "COMMENT ON TABLE images IS 'x'": "CommentOnTable",
    "ANALYZE TABLE images COMPUTE STATISTICS": "AnalyzeTable",
    "REFRESH '/tmp'": "RefreshResource",
    "REFRESH TABLE images": "RefreshTable",
    "CACHE TABLE images": "CacheTable",
    "CACHE LAZY TABLE t AS SELECT 1": "CacheTableAsSelect",
    "UNCACHE TABLE images": "UncacheTable",
    "CLEAR CACHE": "ClearCacheCommand",
    # files and other places
    "SELECT * FROM csv.`/etc/passwd`": "csv./etc/passwd",
    "SELECT * FROM text.`file:///etc/passwd` AS t": "text.file:///etc/passwd",
    "SELECT * FROM `/etc/passwd`": "/etc/passwd",
    "SELECT * FROM delta.`/tmp/x`": "delta./tmp/x",
    "TABLE csv.`/etc/passwd`": "csv./etc/passwd",
    "SELECT * FROM default.images": "default.images",
    "SELECT * FROM spark_catalog.default.images": "spark_catalog.default.images",
    "SELECT * FROM global_temp.images": "global_temp.images",
    "SELECT * FROM nowhere": "nowhere",
    "SELECT * FROM images WITH (path = '/etc/passwd')": "a relation with options",
    "SELECT * FROM STREAM images": "STREAM",
    "SELECT * FROM STREAM(images)": "STREAM",
    "SELECT * FROM images VERSION AS OF 0": "RelationTimeTravel",
    "SELECT * FROM images TIMESTAMP AS OF '2024-01-01'": "RelationTimeTravel",
    "SELECT * FROM parquet.`/tmp/x` VERSION AS OF 0": "RelationTimeTravel",
    "SELECT input_file_name() FROM images": "input_file_name",
    "DESCRIBE csv.`/etc/passwd`": "csv./etc/passwd",
    "DESCRIBE default.images": "default.images",
    "DESCRIBE EXTENDED images": "DESCRIBE EXTENDED",
    "DESCRIBE FORMATTED images": "DESCRIBE EXTENDED",
    "DESCRIBE images PARTITION (split = 'test')": "DESCRIBE with PARTITION",
    "DESCRIBE images label": "DescribeColumn",
    "DESCRIBE QUERY SELECT * FROM csv.`/etc/passwd`": "DescribeQueryCommand",
    "DESCRIBE FUNCTION abs": "DescribeFunction",
    "DESCRIBE DATABASE default": "DescribeNamespace",
    # relations and functions where they are easily overlooked
    "SELECT (SELECT max(value) FROM text.`/x`)": "text./x",
    "SELECT 1 WHERE EXISTS (SELECT * FROM text.`/x`)": "text./x",
    "SELECT 1 WHERE 'a' IN (SELECT * FROM text.`/x`)": "text./x",
    "SELECT * FROM images ORDER BY (SELECT 1 FROM text.`/x`)": "text./x",
    "SELECT count(*) FROM images GROUP BY (SELECT 1 FROM text.`/x`)": "text./x",
    "SELECT count(*) FROM images HAVING EXISTS (SELECT * FROM text.`/x`)": "text./x",
    "SELECT * FROM images LIMIT (SELECT 1 FROM text.`/x`)": "text./x",
    "SELECT count(*) FILTER (WHERE EXISTS (SELECT * FROM text.`/x`)) FROM images": "text./x",
    "SELECT mode() WITHIN GROUP (ORDER BY (SELECT 1 FROM text.`/x`)) FROM images": "text./x",
    "SELECT sum(1) OVER (ORDER BY (SELECT 1 FROM text.`/x`)) FROM images": "text./x",
    "SELECT 1 FROM images WINDOW w AS (ORDER BY (SELECT 1 FROM text.`/x`))": "text./x",
    "SELECT transform(array(1), x -> (SELECT 1 FROM text.`/x`))": "text./x",
    "SELECT CASE WHEN EXISTS (SELECT * FROM text.`/x`) THEN 1 END": "text./x",
    "SELECT * FROM images JOIN models ON EXISTS (SELECT * FROM text.`/x`)": "text./x",
    "SELECT * FROM images, LATERAL (SELECT * FROM text.`/x`)": "text./x",
    "SELECT * FROM images LATERAL VIEW explode((SELECT array(1) FROM text.`/x`)) t": "text./x",
    "SELECT * FROM range((SELECT 1 FROM text.`/x`))": "text./x",
    "SELECT * FROM VALUES (1, (SELECT max(value) FROM text.`/x`)) AS t(a, b)": "text./x",
    "SELECT * FROM images PIVOT (max((SELECT 1 FROM text.`/x`)) FOR label IN ('a'))": "text./x",
    "SELECT * FROM images UNION ALL SELECT * FROM text.`/x`": "text./x",
    "WITH unused AS (SELECT * FROM text.`/x`) SELECT 1": "text./x",
    "WITH a AS (WITH b AS (SELECT * FROM text.`/x`) SELECT 1) SELECT * FROM a": "text./x",
    "FROM images |> JOIN text.`/x` ON true": "text./x",
    "FROM images |> UNION ALL TABLE text.`/x`": "text./x",
    "FROM images |> EXTEND (SELECT 1 FROM text.`/x`) AS a": "text./x",
    "FROM images |> WHERE reflect('a', 'b') = 'c'": "reflect",
    "SELECT 1 FROM images WINDOW w AS (PARTITION BY reflect('a', 'b'))": "reflect",
    "SELECT count(*) FILTER (WHERE reflect('a', 'b') = 'c') FROM images": "reflect",
    "SELECT transform(array(1), x -> reflect('a', 'b'))": "reflect",
    "VALUES (reflect('a', 'b'))": "reflect",
    "SELECT * FROM images LATERAL VIEW reflect('a', 'b') t": "reflect",
    "SELECT * FROM (WITH secret AS (SELECT 1) SELECT * FROM secret), secret": "secret",
    "WITH a AS (SELECT * FROM b), b AS (SELECT 1) SELECT * FROM a": "b is none of",
    "WITH images AS (SELECT 1) SELECT * FROM default.images": "default.images",
    # code
    "SELECT reflect('java.lang.System', 'getenv')": "reflect",
    "SELECT REFLECT('java.lang.System', 'getenv')": "REFLECT",
    "SELECT `reflect`('java.lang.System', 'getenv')": "reflect",
    "SELECT builtin.reflect('java.lang.System', 'getenv')": "builtin.reflect",
    "SELECT system.builtin.abs(1)": "system.builtin.abs",
    "SELECT java_method('java.lang.System', 'getenv')": "java_method",
    "SELECT try_reflect('java.lang.System', 'getenv')": "try_reflect",
    "SELECT TRANSFORM(label) USING 'cat /etc/passwd' FROM images": "ScriptTransformation",
    "FROM images MAP label USING 'cat' AS x": "ScriptTransformation",
    "FROM images REDUCE label USING 'cat' AS x": "ScriptTransformation",
    "ADD JAR '/tmp/x.jar'": "AddJarsCommand",
    "ADD FILE '/etc/passwd'": "AddFilesCommand",
    "ADD ARCHIVE '/tmp/x.zip'": "AddArchivesCommand",
    "LIST JARS": "ListJarsCommand",
    "CALL system.run()": "Call",
    "EXECUTE IMMEDIATE 'SELECT 1'": "ExecuteImmediateQuery",
    "DECLARE VARIABLE x INT": "CreateVariable",
    "SET VAR x = 1": "SetVariable",
    "SELECT IDENTIFIER('ab' || 's')(1)": "ExpressionWithUnresolvedIdentifier",
    "SELECT IDENTIFIER('label') FROM images": "ExpressionWithUnresolvedIdentifier",
    "SELECT * FROM IDENTIFIER('csv.' || '`/etc/passwd`')": "PlanWithUnresolvedIdentifier",
    "SELECT * FROM a_table_function(TABLE(images))": "a_table_function",
    "SELECT * FROM explode(TABLE(images))": "FunctionTableSubqueryArgumentExpression",
    "SELECT from_avro(pixels, 'x') FROM images": "from_avro",
    "SELECT to_protobuf(pixels, 'x') FROM images": "to_protobuf",
    "SELECT xpath('<a/>', 'a')": "xpath",
    # settings, the account, the server
    "SET": "SetCommand",
    "SET spark.sql.runSQLOnFiles = true": "SetCommand",
    "SET -v": "SetCommand",
    "SET TIME ZONE LOCAL": "SetCommand",
    "RESET": "ResetCommand",
    "USE global_temp": "SetCatalogAndNamespace",
    "SET CATALOG spark_catalog": "SetCatalogCommand",
    "SELECT current_user()": "current_user",
    "SELECT current_user": "current_user",
    "SELECT USER, 1": "USER",
    "SELECT session_user": "session_user",
    "SELECT current_catalog": "current_catalog",
    "SELECT version()": "version",
    "SELECT * FROM sql_keywords()": "sql_keywords",
    "SELECT raise_error('x')": "raise_error",
    "EXPLAIN SELECT * FROM images": "ExplainCommand",
    "SHOW TABLES IN global_temp": "SHOW TABLES IN",
    "SHOW TABLES LIKE 'i*'": "SHOW TABLES LIKE",
    "SHOW TABLE EXTENDED LIKE 'i*'": "ShowTablesExtended",
    "SHOW VIEWS": "ShowViews",
    "SHOW DATABASES": "ShowNamespaces",
    "SHOW CATALOGS": "ShowCatalogsCommand",
    "SHOW FUNCTIONS": "ShowFunctions",
    "SHOW COLUMNS IN images": "ShowColumns",
    "SHOW CREATE TABLE images": "ShowCreateTable",
    "SHOW TBLPROPERTIES images": "ShowTableProperties",
    "SHOW PARTITIONS images": "ShowPartitions",
    "SHOW CURRENT NAMESPACE": "ShowCurrentNamespaceCommand",
    # by way of what a gate would look past
    "DESCRIBE IDENTIFIER('images')": "PlanWithUnresolvedIdentifier",
    "DESCRIBE TABLE EXTENDED images AS JSON": "DescribeRelationJsonCommand",
    "SELECT 1 AS x, reflect('a', x) AS y": "reflect",
    "SELECT image_id AS file, input_file_block_start() + file FROM images": "input_file_block",
    "SELECT a_temporary_function(1)": "a_temporary_function",
    "SELECT session.f(1)": "session.f",
    "SELECT images.reflect('a', 'b') FROM images": "images.reflect",
    "SELECT * FROM java_method('a', 'b')": "java_method",
    "SELECT * FROM range(1), LATERAL java_method('a', 'b')": "java_method",
    "SELECT * FROM collations()": "collations",
    "SELECT * FROM binaryFile.`/etc/passwd`": "binaryFile./etc/passwd",
    "SELECT * FROM `csv`.`/etc/passwd`": "csv./etc/passwd",
    "SELECT * FROM jdbc.`jdbc:derby:x;create=true`": "jdbc.",
    "SELECT * FROM images NATURAL JOIN text.`/x`": "text./x",
    "SELECT * FROM images SEMI JOIN text.`/x` ON true": "text./x",
    "SELECT image_id FROM images MINUS SELECT * FROM text.`/x`": "text./x",
    "(SELECT 1) INTERSECT TABLE text.`/x`": "text./x",
    "SELECT count(*) FROM images GROUP BY ROLLUP ((SELECT 1 FROM text.`/x`))": "text./x",
    "SELECT map('k', (SELECT 1 FROM text.`/x`))['k']": "text./x",
    "SELECT :n + (SELECT 1 FROM text.`/x`)": "text./x",
    "SELECT * FROM latest_predictions VERSION AS OF 0": "RelationTimeTravel",
    "SELECT * FROM default.latest_predictions": "default.latest_predictions",
    "CREATE OR REPLACE TEMPORARY VIEW latest_predictions AS SELECT 1": "CreateViewCommand",
    "CREATE TABLE t LIKE images LOCATION '/tmp/t'": "CreateTableLikeCommand",
    "CREATE TABLE t USING jdbc OPTIONS (url 'jdbc:derby:x')": "CreateTable",
    "CREATE FUNCTION f AS 'F' USING JAR '/tmp/x.jar'": "CreateFunction",
    "ALTER TABLE images SET LOCATION '/etc'": "SetTableLocation",
    "ALTER TABLE images SET TBLPROPERTIES ('a' = 'b')": "SetTableProperties",
    "MSCK REPAIR TABLE images": "RepairTable",
    "INSERT INTO images REPLACE WHERE true SELECT 1": "OverwriteByExpression",
    "INSERT INTO images BY NAME SELECT 1 AS image_id": "InsertIntoStatement",
    "WITH x AS (SELECT 1) FROM x INSERT OVERWRITE DIRECTORY '/tmp/o' USING csv SELECT *": "Insert",
    "EXPLAIN EXTENDED SELECT 1": "ExplainCommand",
    "EXPLAIN CODEGEN INSERT INTO images SELECT 1": "ExplainCommand",
    "LIST FILES": "ListFilesCommand",
    "DROP TEMPORARY FUNCTION abs": "DropFunction",
    "DROP TEMPORARY VARIABLE x": "DropVariable",
    "SET VARIABLE x = (SELECT 1)": "SetVariable",
    "EXECUTE IMMEDIATE 'SELECT :a' USING 1 AS a": "ExecuteImmediateQuery",
    "SELECT from_xml('<a/>', 'a int')": "from_xml",
    "SELECT try_aes_decrypt('a', 'b')": "try_aes_decrypt",
    "SELECT spark_partition_id()": "spark_partition_id",
    "SELECT current_database()": "current_database",
    "SELECT * FROM images CLUSTER BY label": "RepartitionByExpression",
    # plans that we leave to Spark, and what grows without end
    "SELECT /*+ BROADCAST(i) */ * FROM images i": "UnresolvedHint",
    "SELECT /*+ REPARTITION(1000000) */ * FROM images": "UnresolvedHint",
    "SELECT * FROM images DISTRIBUTE BY label": "RepartitionByExpression",
    "WITH RECURSIVE r AS (SELECT 1 AS n UNION ALL SELECT n FROM r) TABLE r": "WITH RECURSIVE",
    "SELECT ?": "PosParameter",
}


@pytest.mark.parametrize("statement", REFUSED)
def test_what_does_more_than_read_the_views_is_refused_by_name(
    views: sql.Views, statement: str
) -> None:
    with pytest.raises(NotAllowed) as refusal:
        views.query(statement)
    assert REFUSED[statement] in str(refusal.value)


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "SELEC 1",
        "SELECT 1; SELECT 2",
        "SELECT 1; DROP VIEW images",
        "BEGIN SELECT 1; END",
        "SELECT * FROM images@v1",
        "DFS -ls /",
        "!ls",
        "SOURCE /tmp/x.sql",
    ],
)
def test_what_is_not_one_statement_of_sql_is_an_invalid_query(
    views: sql.Views, statement: str
) -> None:
    with pytest.raises(InvalidQuery):
        views.query(statement)


def test_a_script_is_refused_by_the_gate_too(spark: SparkSession, warehouse: Warehouse) -> None:
    views = sql.Views(spark, warehouse, {}, Notes())
    views.session.conf.set("spark.sql.scripting.enabled", "true")
    with pytest.raises(NotAllowed, match="CompoundBody"):
        views.query("BEGIN SELECT 1; DROP VIEW images; END")


def test_no_variable_of_the_environment_or_of_spark_gets_into_a_text(views: sql.Views) -> None:
    text = "${env:HOME} ${spark:spark.app.id} ${system:user.name}"
    assert rows(views, f"SELECT '{text}'") == [(text,)]


def test_a_view_of_another_session_is_not_one_of_ours(
    spark: SparkSession, views: sql.Views
) -> None:
    spark.range(1).createOrReplaceGlobalTempView("foreign_view")
    spark.range(1).createOrReplaceTempView("private_view")
    for name in ("foreign_view", "private_view", "global_temp.foreign_view"):
        with pytest.raises(NotAllowed, match=name):
            views.query(f"SELECT * FROM {name}")


def test_the_paths_of_the_files_behind_a_view_stay_hidden(views: sql.Views) -> None:
    with pytest.raises(InvalidQuery, match="_metadata"):
        views.query("SELECT _metadata.file_path FROM images")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT nope FROM models", "`nope` cannot be resolved"),
        ("SELECT 1 FRM models", "Syntax error at or near"),
        ("SELECT abs(1, 2)", "requires 1 parameters"),
        (f"SELECT {'(' * 3000}1{')' * 3000}", "nested too deeply"),
        ("SELECT mean / (mean - 0.5D) FROM models", "Division by zero"),
        ("SELECT CAST(model_version AS int) FROM models", "cannot be cast"),
        ("SELECT * FROM models WHERE mean > (SELECT id FROM range(3))", "More than one row"),
    ],
)
def test_an_error_of_the_query_is_one_message_without_java(
    views: sql.Views, query: str, message: str
) -> None:
    with pytest.raises(InvalidQuery, match=message) as error, told_clearly():
        list(views.query(query).toLocalIterator())
    for noise in ("\tat ", "Project [", "JVM", "java."):
        assert noise not in str(error.value)


def test_a_file_that_went_missing_is_not_the_fault_of_the_query(
    spark: SparkSession, tmp_path: Path
) -> None:
    warehouse = Warehouse(tmp_path)
    warehouse.append_rows("models", [model("m1")])
    result = sql.Views(spark, warehouse, {}, Notes()).query("SELECT run_id FROM models")
    for file in warehouse.files("models"):
        Path(file.path).unlink()
    with pytest.raises(QueryFailed, match="does not exist"), told_clearly():
        list(result.toLocalIterator())


def test_a_folder_without_tables_and_versions_that_do_not_exist_are_refused(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    with pytest.raises(sql.NoWarehouse, match="no tables there"):
        sql.require_readable(Warehouse(tmp_path / "nowhere"), {})
    with pytest.raises(InvalidQuery, match="no table is named image; there are images_raw"):
        sql.require_readable(warehouse, {"image": 1})
    with pytest.raises(NoSuchVersion, match="no version 7"):
        sql.require_readable(warehouse, {"images": 7})
    with pytest.raises(NoSuchTable):
        sql.require_readable(warehouse, {"predictions": 0})


def test_work_that_no_cancelling_ends_is_ended_with_the_process_of_spark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()
    process = SimpleNamespace(terminate=ended.set, wait=lambda seconds: None)
    monkeypatch.setattr(sql, "jvm_process", lambda: process)
    monkeypatch.setattr(sql, "GRACE_SECONDS", 0.1)
    spark: Any = SimpleNamespace(sparkContext=SimpleNamespace(cancelAllJobs=lambda: None))

    def plan() -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        ended.wait()

    with pytest.raises(sql.SparkEnded, match="the query went on"):
        sql.interruptible(spark, plan)


def test_ctrl_c_ends_the_work_of_spark_and_the_session_goes_on(spark: SparkSession) -> None:
    counted: list[int] = []

    def count_for_long() -> None:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
        counted.append(spark.range(10**9).where("id % 7 = 1").count())

    with pytest.raises(KeyboardInterrupt):
        sql.interruptible(spark, count_for_long)
    assert counted == []
    assert spark.range(3).count() == 3
