"""What a connection does for its client when the client leaves or asks for too much."""

from collections.abc import Callable
from concurrent.futures import Future

import pytest
from TCLIService import ttypes

from cxr_spark import sql_thrift
from cxr_spark.sql_engine import Statement
from cxr_spark.sql_thrift import Client


class Endless(Statement):
    """A query that has no first row yet."""

    def __init__(self) -> None:
        self.opened = Future()
        self.error = None

    def cancel(self, error: ValueError | RuntimeError) -> None:
        self.error = error


class Engine:
    """Stands in for Spark: keeps the statements."""

    def __init__(self) -> None:
        self.statements: list[Endless] = []

    def views(self) -> None:
        """No catalogs are asked of any."""

    def start(self, text: str, seconds: float | None) -> Endless:
        self.statements.append(Endless())
        return self.statements[-1]


def opened(is_gone: Callable[[], bool]) -> tuple[Client, Engine, ttypes.TSessionHandle]:
    engine = Engine()
    client = Client(engine, "ann", is_gone)
    version = ttypes.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V8
    response = client._call("OpenSession", ttypes.TOpenSessionReq(version))
    return client, engine, response.sessionHandle


def test_a_query_whose_client_hangs_up_is_cancelled() -> None:
    client, engine, session = opened(lambda: True)
    with pytest.raises(ConnectionError):
        client._call("ExecuteStatement", ttypes.TExecuteStatementReq(session, "SELECT 1"))
    client.close()
    assert isinstance(engine.statements[0].error, sql_thrift.Cancelled)


@pytest.mark.parametrize("by", ["CancelOperation", "CloseOperation", "CloseSession"])
def test_a_query_ends_with_its_operation_and_its_session(by: str) -> None:
    client, engine, session = opened(lambda: False)
    request = ttypes.TExecuteStatementReq(session, "SELECT 1", runAsync=True)
    handle = client._call("ExecuteStatement", request).operationHandle
    status = client._call("GetOperationStatus", ttypes.TGetOperationStatusReq(handle))
    assert status.operationState == ttypes.TOperationState.RUNNING_STATE
    closing = session if by == "CloseSession" else handle
    client._call(by, getattr(ttypes, f"T{by}Req")(closing))
    assert isinstance(engine.statements[0].error, sql_thrift.Cancelled)


def test_a_connection_has_only_so_many_operations_and_sessions() -> None:
    client, _, session = opened(lambda: False)
    request = ttypes.TGetCatalogsReq(session)
    for _ in range(sql_thrift.OPERATIONS):
        assert client._call("GetCatalogs", request).operationHandle is not None
    assert "close some" in client._call("GetCatalogs", request).status.errorMessage
    version = ttypes.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V8
    for _ in range(sql_thrift.SESSIONS):
        last = client._call("OpenSession", ttypes.TOpenSessionReq(version))
    assert "sessions at most" in last.status.errorMessage


def test_a_client_older_than_results_by_column_is_refused() -> None:
    client, _, _ = opened(lambda: False)
    version = ttypes.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V5
    response = client._call("OpenSession", ttypes.TOpenSessionReq(version))
    assert "too old" in response.status.errorMessage
