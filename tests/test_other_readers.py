"""Current deltalake and pyarrow, in an environment of their own, read what we wrote."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from cxr_spark.tables import TABLES, Warehouse
from tests.conftest import Chain

# Prints for each table its rows, as JSON in the order of their text; bytes by their hash.
READ = """
import hashlib, json, os, sys
from deltalake import DeltaTable

def plain(value):
    if isinstance(value, bytes):
        return hashlib.sha256(value).hexdigest()
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list):
        pairs = value and all(isinstance(one, tuple) for one in value)
        return dict(sorted(value)) if pairs else [plain(one) for one in value]
    return value

for path in sys.argv[1:]:
    rows = DeltaTable(path).to_pyarrow_table().to_pylist()
    print(json.dumps(sorted(json.dumps(plain(r), default=str, sort_keys=True) for r in rows)))
sys.stdout.flush()
os._exit(0)  # their threads may abort the process as Python shuts down
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readers") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "deltalake", "pyarrow>=20"], check=True)
    return folder / "bin" / "python"


@pytest.mark.long
def test_current_deltalake_and_pyarrow_read_every_row_of_every_table(
    spark: SparkSession, chain: Chain, python: Path
) -> None:
    warehouse = Warehouse(chain.warehouse)
    paths = [warehouse.path(name) for name in TABLES]
    done = subprocess.run([python, "-c", READ, *paths], capture_output=True, text=True)
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
