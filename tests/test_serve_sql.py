"""jobs/serve_sql.py as a process, asked by Hive's own JDBC driver, by PyHive and by enemies."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import pyspark
import pytest
from pyhive import hive
from pyhive.exc import OperationalError
from TCLIService import TCLIService, ttypes
from thrift.Thrift import TApplicationException

from cxr_spark import sql_server, sql_users
from cxr_spark.sql_metadata import METADATA
from cxr_spark.tables import Warehouse
from tests import words
from tests.test_sql import REFUSED

SERVE = Path(__file__).resolve().parent.parent / "jobs" / "serve_sql.py"
PASSWORD = "correct-horse"
# One expression that never looks whether its task has been cancelled.
ENDLESS = (
    "SELECT aggregate(sequence(1L, 4000L + id), 0L, (a, x) -> a + aggregate(sequence(1L, 4000L), "
    "0L, (b, y) -> b + aggregate(sequence(1L, 4000L), 0L, (c, z) -> c + z))) FROM range(2)"
)


class Serving(NamedTuple):
    """A running server: its process, port, warehouse, and the folder that it runs in."""

    process: subprocess.Popen
    port: int
    warehouse: Path
    folder: Path


def start(folder: Path, *arguments: object) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, str(SERVE), *map(str, arguments)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=folder)


def read_until(process: subprocess.Popen, mark: str) -> str:
    """The line of stderr that holds a mark."""
    for line in process.stderr:
        if mark in line:
            return line
    raise AssertionError(f"no {mark!r} on stderr")


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server for ann; at the end it must stop cleanly and have left no file anywhere."""
    root = tmp_path_factory.mktemp("serve")
    warehouse, users, folder = root / "warehouse", root / "users", root / "cwd"
    folder.mkdir()
    priors = {"train_priors": [0.5, float("nan")], "arguments": {"epochs": "1"}}
    row = {"run_id": "r", "model_version": "m0", "mean": 0.5, "image_size": 64, **priors}
    Warehouse(warehouse).append_rows("models", [row])
    sql_users.add(users, "ann", PASSWORD)
    options = ("--users", users, "--max-rows", 1000, "--max-seconds", 60)
    process = start(folder, "--warehouse", warehouse, "--port", 0, *options)
    ready = read_until(process, "ready: jdbc:hive2")
    assert words.bare(ready, "serve_sql") == words.shown("serve_sql")
    port = int(ready.split(":")[-1].split("/")[0])
    yield Serving(process, port, warehouse, folder)
    process.terminate()
    stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(stdout)["status"] == "stopped"
    assert list(folder.iterdir()) == []
    assert [path.name for path in warehouse.iterdir()] == ["models"]


@pytest.fixture(scope="module")
def connect(serving: Serving) -> Callable[..., hive.Connection]:
    """Connects with PyHive."""

    def connection(user: str = "ann", password: str = PASSWORD, **options: object):
        where = {"host": "127.0.0.1", "port": serving.port, "auth": "LDAP"}
        return hive.connect(username=user, password=password, **where, **options)

    return connection


@pytest.fixture(scope="module")
def ask(connect: Callable[..., hive.Connection]) -> Callable[[str], list[tuple]]:
    """Asks a query over one connection of PyHive."""
    cursor = connect().cursor()

    def answer(query: str) -> list[tuple]:
        cursor.execute(query)
        return cursor.fetchall()

    return answer


@pytest.fixture
def thrift(connect: Callable[..., hive.Connection]) -> Iterator[hive.Connection]:
    """A connection whose Thrift client is in our hands."""
    connection = connect()
    yield connection
    connection._transport.close()


def message_of(response: object) -> str:
    """The error in a response."""
    assert response.status.statusCode == ttypes.TStatusCode.ERROR_STATUS
    return response.status.errorMessage


def test_values_of_every_type_arrive_and_so_does_null(ask: Callable) -> None:
    query = """SELECT 'a "b"' AS t, 1 AS i, 12345678901234567 AS l, smallint(2) AS s,
        tinyint(3) AS b, 0.1D AS d, float(0.5) AS f, true AS yes, X'00FF' AS bytes, 1.50 AS exact,
        DATE '2024-07-01' AS day, TIMESTAMP '2024-07-01 12:00:00.123456' AS moment,
        array(1, null) AS a, named_struct('x', 1.5D, 'y', null) AS st, map('k', 1) AS m,
        null AS nothing, CAST(null AS int) AS no_int, CAST(null AS string) AS no_text,
        INTERVAL '1' DAY AS span"""
    (row,) = ask(query)
    assert row[:8] == ('a "b"', 1, 12345678901234567, 2, 3, 0.1, 0.5, True)
    assert row[8:10] == (b"\x00\xff", Decimal("1.5"))
    assert row[10:12] == ("2024-07-01", datetime(2024, 7, 1, 12, 0, 0, 123456))
    assert row[12:15] == ("[1,null]", '{"x":1.5,"y":null}', '{"k":1}')
    assert row[15:] == (None, None, None, "INTERVAL '1' DAY")


def test_nulls_among_many_rows_stand_in_their_places(ask: Callable) -> None:
    rows = ask("SELECT id, nullif(id % 9, 0), nullif(string(id % 7), '0') FROM range(100)")
    assert rows == [(i, i % 9 or None, str(i % 7) if i % 7 else None) for i in range(100)]


def test_views_may_be_named_with_the_schema_as_tools_do(serving: Serving, ask: Callable) -> None:
    assert ask("SELECT default.models.mean FROM `default`.`models`")[0] == (0.5,)
    assert ("val_cce", "double", "nats") in ask("DESCRIBE default.models")
    newest = Warehouse(serving.warehouse).version("models")
    assert ("models", newest) in [row[:2] for row in ask("SHOW TABLES IN default")]
    assert ask("SHOW DATABASES") == [("default",)]


def test_a_new_version_is_seen_within_two_seconds(serving: Serving, ask: Callable) -> None:
    query = "SELECT count(*) FROM models WHERE run_id = 'new'"
    assert ask(query) == [(0,)]
    Warehouse(serving.warehouse).append_rows("models", [{"run_id": "new", "model_version": "m1"}])
    committed = time.monotonic()
    assert ask(query) == [(1,)]
    assert time.monotonic() - committed < 2


def beeline(serving: Serving, password: str, *statements: str, settings: str = "") -> str:
    """What beeline prints, both streams."""
    jars = Path(pyspark.__file__).parent / "jars"
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*"]
    url = f"jdbc:hive2://127.0.0.1:{serving.port}/default{settings}"
    command += ["org.apache.hive.beeline.BeeLine", "-u", url, "-n", "ann", "-p", password]
    command += [part for statement in statements for part in ("-e", statement)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    return done.stdout + done.stderr


def test_the_jdbc_driver_of_hive_asks_for_tables_columns_and_rows(serving: Serving) -> None:
    query = (
        "SELECT model_version, 1.50 AS exact, train_priors FROM default.models WHERE mean = 0.5;"
    )
    said = beeline(
        serving, PASSWORD, "!tables", "!columns models", "!typeinfo", query, "use default;"
    )
    assert "Connected to: Spark SQL" in said
    assert "| default      | latest_predictions" in said
    assert "| val_cce" in said and "| ARRAY<DOUBLE>" in said
    assert "TYPE_NAME" in said and "| DECIMAL " in said
    assert '| m0             | 1.50   | [0.5,"NaN"]   |' in said
    assert "Error" not in said


def test_the_jdbc_driver_is_told_what_is_refused(serving: Serving) -> None:
    said = beeline(serving, PASSWORD, "set spark.sql.runSQLOnFiles=true;")
    assert "SetCommand is not allowed" in said
    said = beeline(serving, PASSWORD, "select 1;", settings="?spark.sql.runSQLOnFiles=true")
    assert "the setting set:hiveconf:spark.sql.runSQLOnFiles is not allowed" in said
    said = beeline(serving, "wrong-password", "select 1;")
    assert "wrong name or password" in said


@pytest.mark.parametrize(
    ("user", "password"), [("ann", "wrong password"), ("eve", PASSWORD), ("", ""), ("ann", "")]
)
def test_nobody_gets_in_without_the_right_password(
    serving: Serving, user: str, password: str
) -> None:
    assert login(serving.port, b"PLAIN", f"\0{user}\0{password}".encode())[0] == sql_server.BAD


@pytest.mark.parametrize(
    ("mechanism", "response"),
    [
        (b"ANONYMOUS", b""),
        (b"PLAIN", f"root\0ann\0{PASSWORD}".encode()),
        (b"PLAIN", b"\xff\0\0"),
        (b"PLAIN", b"ann"),
        (b"PLAIN", b"x" * 5000),
    ],
)
def test_other_logins_are_refused(serving: Serving, mechanism: bytes, response: bytes) -> None:
    assert login(serving.port, mechanism, response)[0] == sql_server.BAD


def login(port: int, mechanism: bytes, response: bytes) -> tuple[int, socket.socket]:
    """The server's word on a login, and the connection."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    for kind, payload in ((sql_server.START, mechanism), (sql_server.OK, response)):
        connection.sendall(struct.pack(">BI", kind, len(payload)) + payload)
    return connection.recv(1)[0], connection


# Tools ask for the schema and name it before a view: here that is answered.
OF_TOOLS = {"SHOW DATABASES", "SHOW VIEWS"} | {text for text in REFUSED if " default." in text}


@pytest.mark.parametrize("statement", sorted(REFUSED.keys() - OF_TOOLS))
def test_every_statement_that_the_gate_refuses_is_refused(ask: Callable, statement: str) -> None:
    with pytest.raises(OperationalError) as error:
        ask(statement)
    assert REFUSED[statement] in str(error.value)


@pytest.mark.parametrize("statement", ["", "SELEC 1", "SELECT 1; DROP VIEW images", "!ls", "\0"])
def test_what_is_no_statement_is_an_error(ask: Callable, statement: str) -> None:
    with pytest.raises(OperationalError):
        ask(statement)


@pytest.mark.parametrize(
    "name",
    [
        "set:hiveconf:spark.sql.runSQLOnFiles",
        "set:system:java.io.tmpdir",
        "set:hivevar:x",
        "spark.sql.runSQLOnFiles",
        "hive.server2.proxy.user",
        "use:database",
    ],
)
def test_a_session_with_settings_is_refused(connect: Callable, name: str) -> None:
    with pytest.raises(OperationalError, match=f"the setting {name} is not allowed"):
        connect(configuration={name: "global_temp"})


def test_a_statement_with_settings_is_refused(thrift: hive.Connection) -> None:
    overlay = {"spark.sql.runSQLOnFiles": "true"}
    request = ttypes.TExecuteStatementReq(thrift.sessionHandle, "SELECT 1", overlay)
    message = message_of(thrift.client.ExecuteStatement(request))
    assert message == "settings are not allowed: spark.sql.runSQLOnFiles"


def test_the_name_in_a_request_counts_for_nothing(thrift: hive.Connection) -> None:
    request = ttypes.TOpenSessionReq(ttypes.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V8, "root")
    opened = thrift.client.OpenSession(request)
    assert opened.status.statusCode == ttypes.TStatusCode.SUCCESS_STATUS
    assert opened.configuration == {}


def test_methods_that_do_not_read_the_views_are_refused(thrift: hive.Connection) -> None:
    session, client = thrift.sessionHandle, thrift.client
    requests = {
        "GetDelegationToken": ttypes.TGetDelegationTokenReq(session, "ann", "root"),
        "CancelDelegationToken": ttypes.TCancelDelegationTokenReq(session, "x"),
        "RenewDelegationToken": ttypes.TRenewDelegationTokenReq(session, "x"),
        "GetLog": ttypes.TGetLogReq(ttypes.TOperationHandle()),
    }
    for name, request in requests.items():
        assert message_of(getattr(client, name)(request)) == f"{name} is not allowed here"


@pytest.mark.parametrize("name", METADATA)
def test_each_question_about_the_views_has_rows_of_the_columns_it_names(
    thrift: hive.Connection, name: str
) -> None:
    session, client = thrift.sessionHandle, thrift.client
    asked = getattr(client, name)(getattr(ttypes, f"T{name}Req")(session))
    described = client.GetResultSetMetadata(ttypes.TGetResultSetMetadataReq(asked.operationHandle))
    fetched = client.FetchResults(ttypes.TFetchResultsReq(asked.operationHandle, 0, 1000))
    assert len(described.schema.columns) == len(fetched.results.columns) > 0


@pytest.mark.parametrize("name", ["UploadData", "_call", "close", "answer", "__init__", ""])
def test_a_method_that_does_not_exist_is_unknown(thrift: hive.Connection, name: str) -> None:
    client = thrift.client
    client._oprot.writeMessageBegin(name, 1, 0)
    TCLIService.GetInfo_args(ttypes.TGetInfoReq()).write(client._oprot)
    client._oprot.trans.flush()
    with pytest.raises(TApplicationException, match="no such method"):
        client.recv_GetInfo()


def test_handles_hold_on_their_own_connection_alone(
    connect: Callable, thrift: hive.Connection
) -> None:
    cursor = connect().cursor()
    cursor.execute("SELECT 1")
    stolen = ttypes.TFetchResultsReq(cursor._operationHandle, 0, 10)
    assert "no such operation" in message_of(thrift.client.FetchResults(stolen))
    session = cursor._connection.sessionHandle
    request = ttypes.TExecuteStatementReq(session, "SELECT 1")
    assert "no such session" in message_of(thrift.client.ExecuteStatement(request))
    without = ttypes.TExecuteStatementReq(None, "SELECT 1")
    assert "no such session" in message_of(thrift.client.ExecuteStatement(without))
    assert cursor.fetchall() == [(1,)]


GARBAGE = {
    "a frame of 4 GB": b"\xff\xff\xff\xff",
    "a frame over the bound": struct.pack(">I", sql_server.REQUEST_BYTES + 1) + bytes(100),
    "no Thrift": struct.pack(">I", 100) + bytes(100),
    "a string of 2 GB": struct.pack(">IIi", 8, 0x80010001, (1 << 31) - 1),
    "a negative length": struct.pack(">IIi", 8, 0x80010001, -5),
    "a call without arguments": struct.pack(">IIi7sI", 19, 0x80010001, 7, b"GetInfo", 0),
    "structs without end": struct.pack(">IIi7sI", 40019, 0x80010001, 7, b"GetInfo", 0)
    + b"\x0c\x00\x09\x00" * 10_000,
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_ends_its_connection_and_nothing_else(
    serving: Serving, ask: Callable, garbage: str
) -> None:
    kind, connection = login(serving.port, b"PLAIN", f"\0ann\0{PASSWORD}".encode())
    assert kind == sql_server.COMPLETE
    assert connection.recv(4) == bytes(4)
    connection.sendall(GARBAGE[garbage])
    connection.settimeout(10)  # it waits longer than that for the rest of a frame
    with suppress(ConnectionResetError):
        assert connection.recv(1) == b""
    assert ask("SELECT 1") == [(1,)]


def test_a_result_of_too_many_rows_is_an_error_and_not_cut_off(ask: Callable) -> None:
    assert len(ask("SELECT id FROM range(1000)")) == 1000
    with pytest.raises(OperationalError, match="more rows than the limit of 1,000"):
        ask("SELECT id FROM range(1001)")


def test_a_query_that_fails_while_its_rows_are_fetched_says_why(ask: Callable) -> None:
    with pytest.raises(OperationalError, match="Division by zero"):
        ask("SELECT 1 / (9 - id) FROM range(0, 10, 1, 2)")


def test_a_query_that_will_not_end_is_ended_with_its_process_and_clients_stay(
    serving: Serving, ask: Callable, thrift: hive.Connection
) -> None:
    assert ask("SELECT 1") == [(1,)]
    (jvm,) = children(serving.process.pid)
    started = time.monotonic()
    request = ttypes.TExecuteStatementReq(thrift.sessionHandle, ENDLESS, queryTimeout=1)
    assert "longer than its limit of 1 s" in message_of(thrift.client.ExecuteStatement(request))
    assert time.monotonic() - started < 5
    wait_for_the_end_of(jvm, serving)
    assert ask("SELECT count(*) FROM models WHERE run_id = 'r'") == [(1,)]


@pytest.mark.long
def test_spark_is_started_again_when_its_process_has_died(serving: Serving, ask: Callable) -> None:
    (jvm,) = children(serving.process.pid)
    os.kill(jvm, signal.SIGKILL)
    wait_for_the_end_of(jvm, serving)
    assert ask("SELECT count(*) FROM models WHERE run_id = 'r'") == [(1,)]


def wait_for_the_end_of(jvm: int, serving: Serving) -> None:
    until = time.monotonic() + 60
    while jvm in children(serving.process.pid):
        assert time.monotonic() < until, "it still holds the cores"
        time.sleep(0.2)


def children(pid: int) -> list[int]:
    """The JVMs below a process."""
    found = subprocess.run(["pgrep", "-P", str(pid), "java"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--warehouse", "nowhere"], "no tables there"),
        ([], "--warehouse is needed"),
        (["--add-user", "ann"], "--add-user needs --users FILE"),
        (["--warehouse", "WAREHOUSE", "--host", "0.0.0.0"], "give a users file"),
        (["--warehouse", "WAREHOUSE", "--host", ""], "an empty host"),
        (["--warehouse", "WAREHOUSE", "--host", "::"], "give a users file"),
        (["--warehouse", "WAREHOUSE", "--users", "none"], "make it with --add-user"),
        (["--warehouse", "WAREHOUSE", "--port", "PORT"], "Address already in use"),
        (["--warehouse", "WAREHOUSE", "--port", "70000"], "70000"),
        (["--warehouse", "WAREHOUSE", "--max-rows", "0"], "expected a number above 0"),
    ],
)
def test_what_can_not_be_served_is_exit_2_before_spark_is_started(
    serving: Serving, tmp_path: Path, arguments: list[str], message: str
) -> None:
    known = {"WAREHOUSE": str(serving.warehouse), "PORT": str(serving.port)}
    job = start(tmp_path, *[known.get(argument, argument) for argument in arguments])
    stdout, stderr = job.communicate(timeout=100)
    assert job.returncode == 2, stderr
    assert message in json.loads(stdout)["error"]
    assert "Spark" not in stderr and "Traceback" not in stderr


def test_a_user_is_added_with_a_password_from_stdin(tmp_path: Path) -> None:
    job = start(tmp_path, "--users", "users", "--add-user", "ann")
    stdout, stderr = job.communicate(f"{PASSWORD}\n", timeout=100)
    assert job.returncode == 0, stderr
    assert sql_users.admits(sql_users.read(tmp_path / "users"), "ann", PASSWORD)
    assert PASSWORD not in stdout + stderr
