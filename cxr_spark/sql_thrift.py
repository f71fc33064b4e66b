"""The Thrift methods of HiveServer2, as far as they read the views; all others are refused."""

import os
import re
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pyspark
from pyspark.sql import types as T
from TCLIService import TCLIService
from TCLIService import ttypes as hive
from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.Thrift import TApplicationException, TMessageType
from thrift.transport.TTransport import TMemoryBuffer

from cxr_spark import sql_dialect, sql_rows
from cxr_spark.sql_engine import Engine, Statement
from cxr_spark.sql_errors import QueryFailed
from cxr_spark.sql_metadata import METADATA, SCHEMA, Known

SESSIONS = 4
OPERATIONS = 32
ROWS_AT_ONCE = 10_000
POLL_SECONDS = 1.0
# The first with results by column; the last that PyHive's classes know.
OLDEST, NEWEST = (
    hive.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V6,
    hive.TProtocolVersion.HIVE_CLI_SERVICE_PROTOCOL_V10,
)
LOG = 1  # TFetchResultsReq.fetchType: not the rows but the log of the query, which is empty
LOG_COLUMNS = T.StructType([T.StructField("operation_log", T.StringType())])
# Hive's own driver sends these by itself; they ask for nothing that is not so already.
IDLE_SETTINGS = {"set:hiveconf:hive.server2.thrift.resultset.default.fetch.size"}
INFO = {
    hive.TGetInfoType.CLI_SERVER_NAME: hive.TGetInfoValue(stringValue="cxr_spark"),
    hive.TGetInfoType.CLI_DBMS_NAME: hive.TGetInfoValue(stringValue="Spark SQL"),
    hive.TGetInfoType.CLI_DBMS_VER: hive.TGetInfoValue(stringValue=pyspark.__version__),
    hive.TGetInfoType.CLI_IDENTIFIER_QUOTE_CHAR: hive.TGetInfoValue(stringValue="`"),
    hive.TGetInfoType.CLI_DATA_SOURCE_READ_ONLY: hive.TGetInfoValue(stringValue="Y"),
    hive.TGetInfoType.CLI_MAX_COLUMN_NAME_LEN: hive.TGetInfoValue(lenValue=128),
    hive.TGetInfoType.CLI_MAX_SCHEMA_NAME_LEN: hive.TGetInfoValue(lenValue=128),
    hive.TGetInfoType.CLI_MAX_TABLE_NAME_LEN: hive.TGetInfoValue(lenValue=128),
}
SUCCESS = hive.TStatus(hive.TStatusCode.SUCCESS_STATUS)


class Refused(ValueError):
    """A call that is not answered here."""


class Cancelled(QueryFailed):
    """A query that its client cancelled."""


class Operation:
    """What a client fetches rows of: a query, or an answer at hand; and how many it has."""

    def __init__(self, result: Statement | Known) -> None:
        self.result = result
        self.offset = 0


class Client:
    """One connection: its sessions and operations, which end with it.

    Methods with the name of a Thrift method may be called by the client, and those of METADATA.
    """

    def __init__(self, engine: Engine, user: str, is_gone: Callable[[], bool]) -> None:
        """
        Args:
            engine: runs the queries.
            user: as authenticated; what the client says later doesn't count.
            is_gone: whether the client has hung up.
        """
        self.user = user
        self._engine = engine
        self._is_gone = is_gone
        self._sessions: set[bytes] = set()
        self._operations: dict[bytes, Operation] = {}

    def close(self) -> None:
        """Cancel what runs."""
        while self._operations:
            self._forget(self._operations.popitem()[1])

    def answer(self, message: bytes) -> bytes:
        """The reply to one call.

        Raises:
            TException, ValueError and others: the message is no call of Thrift.
        """
        incoming = TBinaryProtocol(TMemoryBuffer(message), strictRead=True)
        name, _, number = incoming.readMessageBegin()
        outgoing = TBinaryProtocol(TMemoryBuffer())
        if name in KNOWN_METHODS:
            arguments = getattr(TCLIService, f"{name}_args")()
            arguments.read(incoming)
            reply = getattr(TCLIService, f"{name}_result")(self._call(name, arguments.req))
            outgoing.writeMessageBegin(name, TMessageType.REPLY, number)
        else:
            reply = TApplicationException(TApplicationException.UNKNOWN_METHOD, "no such method")
            outgoing.writeMessageBegin(name, TMessageType.EXCEPTION, number)
        reply.write(outgoing)
        outgoing.writeMessageEnd()
        return outgoing.trans.getvalue()

    def _call(self, name: str, request: Any) -> Any:
        response = getattr(hive, f"T{name}Resp")
        try:
            if name not in METHODS | METADATA.keys() or request is None:
                raise Refused(f"{name} is not allowed here")
            if name != "OpenSession" and hasattr(request, "sessionHandle"):
                self._require_session(request.sessionHandle)
            if name in METADATA:
                known = METADATA[name](self._engine.views(), request)
                return response(status=SUCCESS, operationHandle=self._known(known, name))
            return response(status=SUCCESS, **getattr(self, name)(request))
        except ConnectionError:
            raise
        except Exception as error:
            return response(status=_status(error), **_REQUIRED.get(name, {}))

    def OpenSession(self, request: Any) -> dict[str, Any]:
        """A session for the authenticated user; it takes no settings."""
        _require_idle(request.configuration)
        if (request.client_protocol or 0) < OLDEST:
            raise Refused("the client is too old: it needs version 6 of the protocol or newer")
        if len(self._sessions) == SESSIONS:
            raise Refused(f"a connection has {SESSIONS} sessions at most")
        key = os.urandom(16)
        self._sessions.add(key)
        handle = hive.TSessionHandle(_identifier(key))
        version = min(request.client_protocol, NEWEST)
        return {"sessionHandle": handle, "serverProtocolVersion": version, "configuration": {}}

    def CloseSession(self, request: Any) -> dict[str, Any]:
        """The end of a session and, as a connection has one, of its operations."""
        self._sessions.discard(request.sessionHandle.sessionId.guid)
        if not self._sessions:
            self.close()
        return {}

    def GetInfo(self, request: Any) -> dict[str, Any]:
        """One fact about the server."""
        if request.infoType not in INFO:
            raise Refused(f"there is no information of type {request.infoType}")
        return {"infoValue": INFO[request.infoType]}

    def ExecuteStatement(self, request: Any) -> dict[str, Any]:
        """Run one statement that passes the gate; wait for it unless the client wants to poll."""
        if request.confOverlay:
            raise Refused(f"settings are not allowed: {', '.join(sorted(request.confOverlay))}")
        text = request.statement or ""
        known = sql_dialect.at_hand(text)
        if known is not None:
            return {"operationHandle": self._known(known, "ExecuteStatement")}
        self._require_room()
        statement = self._engine.start(sql_dialect.plain(text), request.queryTimeout)
        handle = self._add(Operation(statement), "ExecuteStatement")
        if not request.runAsync:
            try:
                self._wait(statement, statement.opened)
            except Exception:
                self._forget(self._operations.pop(handle.operationId.guid))
                raise
        return {"operationHandle": handle}

    def GetOperationStatus(self, request: Any) -> dict[str, Any]:
        """How far an operation is; waits a moment for one that runs."""
        result = self._operation(request).result
        states = hive.TOperationState
        state = states.FINISHED_STATE
        if isinstance(result, Statement):
            try:
                self._wait(result, result.opened, POLL_SECONDS)
                if not result.opened.done():
                    state = states.RUNNING_STATE
            except ConnectionError:
                raise
            except Exception as error:
                status = _status(error)
                cancelled = isinstance(error, Cancelled)
                return {
                    "operationState": states.CANCELED_STATE if cancelled else states.ERROR_STATE,
                    "sqlState": status.sqlState,
                    "errorCode": status.errorCode,
                    "errorMessage": status.errorMessage,
                }
        return {"operationState": state, "hasResultSet": result is not sql_dialect.NOTHING}

    def CancelOperation(self, request: Any) -> dict[str, Any]:
        """Stop a query."""
        self._forget(self._operation(request))
        return {}

    def CloseOperation(self, request: Any) -> dict[str, Any]:
        """Forget an operation."""
        self._forget(self._operation(request))
        del self._operations[request.operationHandle.operationId.guid]
        return {}

    def GetResultSetMetadata(self, request: Any) -> dict[str, Any]:
        """The columns of a result."""
        result = self._operation(request).result
        if isinstance(result, Statement):
            self._wait(result, result.opened)
        return {"schema": sql_rows.table_schema(result.columns)}

    def FetchResults(self, request: Any) -> dict[str, Any]:
        """The next rows of a result."""
        operation = self._operation(request)
        if request.fetchType == LOG:
            return {"hasMoreRows": False, "results": sql_rows.row_set(LOG_COLUMNS, [], 0)}
        count = min(max(request.maxRows or 0, 1), ROWS_AT_ONCE)
        result, start = operation.result, operation.offset
        first = request.orientation == hive.TFetchOrientation.FETCH_FIRST
        if isinstance(result, Known):
            start = 0 if first else start
            rows = result.rows[start : start + count]
        elif request.orientation != hive.TFetchOrientation.FETCH_NEXT and not (
            first and start == 0
        ):
            raise Refused("the rows of a query are given once, from the first to the last")
        else:
            self._wait(result, result.opened)
            rows = self._wait(result, result.fetch(count))
        operation.offset = start + len(rows)
        results = sql_rows.row_set(result.columns, rows, start)
        return {"hasMoreRows": bool(rows), "results": results}

    def _require_session(self, handle: Any) -> None:
        if _guid(handle, "sessionId") not in self._sessions:
            raise Refused("no such session on this connection")

    def _operation(self, request: Any) -> Operation:
        operation = self._operations.get(_guid(request.operationHandle, "operationId"))
        if operation is None:
            raise Refused("no such operation on this connection")
        return operation

    def _require_room(self) -> None:
        if len(self._operations) >= OPERATIONS:
            raise Refused(f"a connection has {OPERATIONS} open operations at most: close some")

    def _known(self, known: Known, method: str) -> hive.TOperationHandle:
        self._require_room()
        return self._add(Operation(known), method)

    def _add(self, operation: Operation, method: str) -> hive.TOperationHandle:
        key = os.urandom(16)
        self._operations[key] = operation
        # ExecuteStatement is EXECUTE_STATEMENT.
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method).upper()
        number = hive.TOperationType._NAMES_TO_VALUES.get(kind, hive.TOperationType.UNKNOWN)
        has_rows = operation.result is not sql_dialect.NOTHING
        return hive.TOperationHandle(_identifier(key), number, has_rows)

    def _forget(self, operation: Operation) -> None:
        if isinstance(operation.result, Statement):
            operation.result.cancel(Cancelled("the query was cancelled"))

    def _wait(
        self, statement: Statement, step: "Future[Any]", seconds: float = float("inf")
    ) -> Any:
        """What a step of a statement gives; None if it takes longer than so many seconds.

        Raises:
            ConnectionError: the client has hung up meanwhile.
        """
        until = time.monotonic() + seconds
        while statement.error is None and not step.done():
            if self._is_gone():
                raise ConnectionResetError("the client has hung up")
            if time.monotonic() > until:
                return None
            wait([step], timeout=0.2)
        if statement.error is not None:
            raise statement.error
        return step.result()


KNOWN_METHODS = {name for name in vars(TCLIService.Iface) if name[0].isupper()}
METHODS = {name for name in vars(Client) if name[0].isupper()}
# Clients can't read an answer without these, not even one with an error in it.
_REQUIRED: dict[str, dict[str, Any]] = {
    "OpenSession": {"serverProtocolVersion": NEWEST},
    "GetInfo": {"infoValue": hive.TGetInfoValue(stringValue="")},
}


def _require_idle(settings: dict[str, str] | None) -> None:
    """Refuse settings of a client, but for those that change nothing."""
    for name, value in (settings or {}).items():
        idle = name in IDLE_SETTINGS or (name == "use:database" and value in ("", SCHEMA))
        if not idle:
            raise Refused(f"the setting {name} is not allowed: connect to /{SCHEMA} without it")


def _identifier(key: bytes) -> hive.THandleIdentifier:
    return hive.THandleIdentifier(key, key)  # a handle holds on its own connection alone


def _guid(handle: Any, member: str) -> bytes:
    return getattr(getattr(handle, member, None), "guid", None) or b""


def _status(error: Exception) -> hive.TStatus:
    """What a client is told of an error; of one that nobody has foreseen not more than that."""
    state, message = "42000" if isinstance(error, ValueError) else "HY000", str(error)
    if not isinstance(error, ValueError | QueryFailed):
        traceback.print_exception(error)
        message = "the server failed; its log says why"
    return hive.TStatus(
        hive.TStatusCode.ERROR_STATUS, sqlState=state, errorCode=1, errorMessage=message
    )
