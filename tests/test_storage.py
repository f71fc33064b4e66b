"""Tables in an object store: delta-rs and pyarrow against an S3 server on loopback."""

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cxr_spark import delta, session, storage
from cxr_spark.tables import Warehouse
from tests.conftest import run_job
from tests.test_commits import appended, keys


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """In a process of its own: delta-rs asks while it holds this interpreter's lock."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.terminate()
    server.wait()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket of its own, with its keys and address in the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/radiology", method="PUT"))
    return "s3://radiology/a folder"


def test_rows_are_committed_to_a_store_and_come_back(bucket: str) -> None:
    table = f"{bucket}/table"
    assert delta.version(table) is None
    assert appended(table, "a", "b", sequence=0) == 1
    assert appended(table, "c", run_id="s", sequence=0) == 2
    assert appended(table, "c", run_id="s", sequence=0) == 2
    assert keys(table) == ["a", "b", "c"]
    assert all(file.path.startswith(f"{table}/j-") for file in delta.data_files(table))
    stored = {file.place for file in storage.parquet_files(table)}
    assert {file.path for file in delta.data_files(table)} <= stored


def test_writers_of_one_table_in_a_store_lose_nothing(bucket: str) -> None:
    table = f"{bucket}/shared"

    def write(name: str) -> None:
        for number in range(5):
            appended(table, f"{name}-{number}", run_id=name, sequence=number)

    writers = [threading.Thread(target=write, args=(name,)) for name in "xyz"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert keys(table) == sorted(f"{name}-{number}" for name in "xyz" for number in range(5))


def test_a_warehouse_in_a_store_has_its_tables_with_partitions(bucket: str) -> None:
    warehouse = Warehouse(f"{bucket}/warehouse/")
    row = {"image_id": "a", "model_version": "m 1/é", "error": "unreadable", "run_id": "r"}
    assert warehouse.append_rows("predictions", [row]) == 1
    (file,) = warehouse.files("predictions")
    assert file.partition == {"model_version": "m 1/é"}
    assert warehouse.path("predictions") == f"{bucket}/warehouse/predictions"
    found = warehouse.read_arrow("predictions", ["image_id", "error"]).to_pylist()
    assert found == [{"image_id": "a", "error": "unreadable"}]


def test_spark_is_told_the_same_store(bucket: str, endpoint: str) -> None:
    settings = session._settings("local[2]")
    assert settings["spark.hadoop.fs.s3a.endpoint"] == endpoint
    assert settings["spark.hadoop.fs.s3a.connection.ssl.enabled"] == "false"
    assert storage.for_spark(f"{bucket}/t") == "s3a://radiology/a folder/t"
    assert not storage.spark_settings({})


def test_a_job_that_writes_refuses_a_store_before_it_does_anything(bucket: str) -> None:
    done = run_job("evaluate", "--warehouse", f"{bucket}/warehouse")
    assert done.exit_code == 2
    assert "need a folder" in done.summary["error"]
