"""Readers that aren't ours read what we wrote: chDB; and in an environment of their own others."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import chdb
import pytest
from pyspark.sql import Row, SparkSession
from pyspark.sql import types as T

from cxr_spark.tables import TABLES, Warehouse
from tests.conftest import Chain

# How a reader gives the rows of a table.
READERS = {
    "deltalake": """
from deltalake import DeltaTable

def rows_of(path):
    return DeltaTable(path).to_pyarrow_table().to_pylist()
""",
    "sail": """
from pysail.spark import SparkConnectServer
from pyspark.sql import SparkSession

server = SparkConnectServer()
server.start(background=True)
_, port = server.listening_address
spark = SparkSession.builder.remote(f"sc://127.0.0.1:{port}").getOrCreate()

def rows_of(path):
    return [row.asDict(recursive=True) for row in spark.read.format("delta").load(path).collect()]
""",
}
# Prints for each table its rows, as JSON in the order of their text; bytes by their hash.
READ = """
import hashlib, json, os, sys

def plain(value):
    if isinstance(value, bytes | bytearray):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        pairs = value and all(isinstance(one, tuple) for one in value)
        return dict(sorted(value)) if pairs else [plain(one) for one in value]
    return value

for path in sys.argv[1:]:
    texts = [json.dumps(plain(row), default=str, sort_keys=True) for row in rows_of(path)]
    print(json.dumps(sorted(texts)))
sys.stdout.flush()
os._exit(0)  # their threads may abort the process as Python shuts down
"""


def test_chdb_reads_every_column_of_every_table(
    spark: SparkSession, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    warehouse = Warehouse(chain.warehouse)
    monkeypatch.chdir(chain.warehouse)  # chDB opens files below the working directory only
    connection = chdb.connect(":memory:")
    for name in TABLES:
        query = f"SELECT * FROM deltaLakeLocal('{warehouse.path(name)}')"
        settings = "SETTINGS output_format_arrow_string_as_string = 0"  # bytes are no text
        theirs = connection.query(f"{query} {settings}", "ArrowTable").to_pylist()
        ours = warehouse.read(spark, name, warehouse.version(name))
        rows = [row.asDict() for row in ours.collect()]
        assert _as_clickhouse(theirs, ours.schema) == _as_clickhouse(rows, ours.schema), name


def _as_clickhouse(rows: list[dict], schema: T.StructType) -> list[str]:
    """Rows as comparable texts; an array, map or struct that is null is an empty one to chDB."""

    def plain(value: Any, kind: T.DataType) -> Any:
        match kind:
            case T.StringType() if isinstance(value, bytes):
                return value.decode()
            case T.BinaryType() if value is not None:
                return hashlib.sha256(value).hexdigest()
            case T.TimestampType() if value is not None:
                return value.replace(tzinfo=None).isoformat()
            case T.ArrayType():
                return [plain(one, kind.elementType) for one in value or []]
            case T.MapType():
                pairs = dict(value or {}).items()
                return sorted((plain(k, kind.keyType), plain(v, kind.valueType)) for k, v in pairs)
            case T.StructType():
                fields = value.asDict() if isinstance(value, Row) else value or {}
                return [plain(fields.get(field.name), field.dataType) for field in kind]
        return value

    assert all(row.keys() == set(schema.names) for row in rows)
    return sorted(repr(plain(row, schema)) for row in rows)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    packages = ["deltalake", "pyarrow>=20", "pysail", "pyspark-client"]
    subprocess.run([*pip, *packages], check=True)
    return folder / "bin" / "python"


@pytest.mark.long
@pytest.mark.parametrize("reader", READERS)
def test_a_current_reader_reads_every_row_of_every_table(
    spark: SparkSession, chain: Chain, python: Path, tmp_path: Path, reader: str
) -> None:
    warehouse = Warehouse(chain.warehouse)
    paths = [warehouse.path(name) for name in TABLES]
    without_spark = {k: v for k, v in os.environ.items() if "SPARK" not in k}
    script = tmp_path / "read.py"  # by -c pyspark-client looks for a Spark of its own
    script.write_text(READERS[reader] + READ)
    done = subprocess.run(
        [python, script, *paths],
        env=without_spark | {"TZ": "UTC"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    for name, line in zip(TABLES, done.stdout.splitlines(), strict=True):
        theirs = [json.loads(row) for row in json.loads(line)]
        frame = warehouse.read(spark, name, warehouse.version(name))
        ours = [row.asDict(recursive=True) for row in frame.collect()]
        assert len(theirs) == len(ours), name
        key = sorted(frame.columns)
        assert all(sorted(row) == key for row in theirs)
        assert _texts(theirs, key) == _texts(ours, key), name


def _texts(rows: list[dict], columns: list[str]) -> list[str]:
    """Rows as comparable texts: moments without their zone, bytes by their hash."""

    def plain(value: object) -> object:
        if value in ([], {}):  # pyarrow gives a map as a list of pairs: an empty one is a list
            return []
        if isinstance(value, bytes | bytearray):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, dict):
            return {name: plain(one) for name, one in sorted(value.items())}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return str(value).removesuffix("+00:00")

    return sorted(json.dumps({name: plain(row[name]) for name in columns}) for row in rows)
