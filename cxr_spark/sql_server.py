"""The socket of the SQL server: who may connect, SASL PLAIN, frames within bounds."""

import ipaddress
import socket
import socketserver
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from thrift.Thrift import TException

from cxr_spark import sql_users
from cxr_spark.sql_engine import Engine
from cxr_spark.sql_thrift import Client
from cxr_spark.sql_users import InvalidUsers

CONNECTIONS = 64
LOGIN_BYTES = 4 << 10
REQUEST_BYTES = 1 << 20
FRAME_BYTES = 4 << 20  # of an answer; clients refuse frames of more than 16 MB
LOGIN_SECONDS = 10
REQUEST_SECONDS = 30
IDLE_SECONDS = 3600
SEND_SECONDS = 60
# Of TCP: a peer that has vanished without a word is found out in three minutes.
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 30, socket.TCP_KEEPCNT: 4}
# The first byte of a message of Thrift's SASL handshake.
START, OK, BAD, COMPLETE = 1, 2, 3, 5


class CannotListen(ValueError):
    """An address that can't be listened on, or not like this."""


class LoginRefused(Exception):
    """A client that is not let in."""


class Server(socketserver.ThreadingTCPServer):
    """Listens from the start, answers once `serve_forever` is called."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = CONNECTIONS

    def __init__(
        self, host: str, port: int, users: Path | None, say: Callable[[str], None]
    ) -> None:
        """
        Args:
            host: a name or address.
            port: 0 takes any that is free.
            users: the file of those who are let in, read at each login; without one, anybody is,
                but only at a loopback address.
            say: takes a line for each refused login.

        Raises:
            CannotListen, InvalidUsers.
        """
        address = _address(host, port)
        if users is not None:
            sql_users.read(users)
        elif not ipaddress.ip_address(address[0]).is_loopback:
            raise CannotListen(
                f"{host}: others could connect there; give a users file with --users FILE"
            )
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.users = users
        self.say = say
        self.engine: Engine | None = None
        self.places = threading.BoundedSemaphore(CONNECTIONS)
        self.one_login = threading.Lock()  # at a time, as each costs memory
        try:
            super().__init__(address, _Connection)
        except (OSError, OverflowError) as error:
            raise CannotListen(f"{host}:{port}: {error}") from error

    def verify_request(self, request: object, client_address: object) -> bool:
        """Whether there is a place for one more connection."""
        return self.places.acquire(blocking=False)

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection broke: the others go on, and a bug is told with its trace."""
        if not isinstance(sys.exception(), OSError | EOFError):
            traceback.print_exc()


class _Connection(socketserver.BaseRequestHandler):
    """One client, from the handshake until it leaves."""

    server: Server
    request: socket.socket

    def handle(self) -> None:
        try:
            for option, value in {socket.SO_KEEPALIVE: 1}.items():
                self.request.setsockopt(socket.SOL_SOCKET, option, value)
            for option, value in KEEPALIVE.items():
                self.request.setsockopt(socket.IPPROTO_TCP, option, value)
            self._serve(self._login())
        except LoginRefused as refusal:
            self.server.say(f"{self.client_address[0]}: login refused: {refusal}")
            with suppress(OSError):
                self._send_login(BAD, str(refusal))
        finally:
            self.server.places.release()

    def _serve(self, user: str) -> None:
        """Answer calls until the client leaves, is idle for too long or sends nonsense."""
        assert self.server.engine is not None
        client = Client(self.server.engine, user, self._is_gone)
        try:
            while True:
                (size,) = struct.unpack(">I", self._read(4, IDLE_SECONDS))
                if size > REQUEST_BYTES:
                    return
                answer = client.answer(self._read(size, REQUEST_SECONDS))
                for start in range(0, len(answer), FRAME_BYTES):
                    frame = answer[start : start + FRAME_BYTES]
                    self._send(struct.pack(">I", len(frame)) + frame)
        except (OSError, EOFError, TException, ValueError, RecursionError):
            return  # it has left, or what it sends is no Thrift
        finally:
            client.close()

    def _login(self) -> str:
        """The name of the client's user, as SASL PLAIN (RFC 4616) gives it."""
        until = time.monotonic() + LOGIN_SECONDS
        kind, mechanism = self._read_login(until)
        if kind != START or mechanism != b"PLAIN":
            raise LoginRefused("only SASL PLAIN is spoken here")
        _, response = self._read_login(until)
        try:
            authority, name, password = response.decode().split("\0")
        except ValueError:
            raise LoginRefused("no name and password") from None
        if authority not in ("", name):
            raise LoginRefused("a user can't act as another")
        self._require_known(name, password)
        self._send_login(COMPLETE, "")
        return name

    def _require_known(self, name: str, password: str) -> None:
        if self.server.users is None:
            return
        with self.server.one_login:
            try:
                known = sql_users.admits(sql_users.read(self.server.users), name, password)
            except InvalidUsers as error:
                self.server.say(str(error))
                known = False
        if not known:
            raise LoginRefused(f"wrong name or password for {name!r}")

    def _read_login(self, until: float) -> tuple[int, bytes]:
        kind, size = struct.unpack(">BI", self._read(5, until - time.monotonic()))
        if size > LOGIN_BYTES:
            raise LoginRefused("a message of the login is too long")
        return kind, self._read(size, until - time.monotonic())

    def _send_login(self, kind: int, text: str) -> None:
        self._send(struct.pack(">BI", kind, len(text.encode())) + text.encode())

    def _read(self, size: int, seconds: float) -> bytes:
        """So many bytes, within so many seconds."""
        until = time.monotonic() + seconds
        parts: list[bytes] = []
        while size > 0:
            self.request.settimeout(max(until - time.monotonic(), 0.001))
            part = self.request.recv(min(size, 1 << 16))
            if not part:
                raise EOFError
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _send(self, data: bytes) -> None:
        self.request.settimeout(SEND_SECONDS)
        self.request.sendall(data)

    def _is_gone(self) -> bool:
        self.request.settimeout(0)
        try:
            return not self.request.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True


def _address(host: str, port: int) -> tuple[str, int]:
    if not host:
        raise CannotListen("an empty host: give a name or address")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise CannotListen(f"{host}:{port}: {error}") from error
    return found[0][4][0], port  # type: ignore[return-value]
