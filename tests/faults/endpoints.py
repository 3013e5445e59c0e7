"""An endpoint that misbehaves when told to: by itself, or as a proxy in front of a real server."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from enum import Enum

BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FULL = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HALF = b'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: "x"\r\nContent-Type: application/json\r\n\r\nhalf of it'


class Fault(Enum):
    """What becomes of a request."""

    NONE = "none"
    BUSY = "answers 503"
    FULL = "answers 507"
    HANGS = "takes the request and says nothing"
    REFUSES = "resets the connection"
    CUTS = "breaks off in the middle of the answer"


_ANSWERS = {Fault.BUSY: BUSY, Fault.FULL: FULL, Fault.CUTS: HALF, Fault.HANGS: b""}


class FaultyEndpoint:
    """A TCP proxy on loopback.

    Parameters
    ----------
    upstream
        Port of the real server; without one there has to be a fault.
    """

    def __init__(self, upstream: int = 0, fault: Fault = Fault.NONE) -> None:
        self.fault = fault
        self.asked = 0
        """Connections that came while there was a fault."""
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def turn(self, fault: Fault) -> None:
        """Change what it does; connections that are open break."""
        self.fault = fault
        for connection in list(self._open):
            _reset(connection)

    def close(self) -> None:
        self.turn(Fault.REFUSES)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        try:
            if self.fault is Fault.NONE:
                self._pass(connection)
                return
            self.asked += 1
            if self.fault is Fault.REFUSES:
                _reset(connection)
                return
            connection.recv(65536)
            if self.fault is Fault.HANGS:
                while connection.recv(65536):
                    pass
            connection.sendall(_ANSWERS[self.fault])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):  # the rest of the request: closed unread it would be a reset
                pass
        except OSError:
            return
        finally:
            self._open.discard(connection)
            connection.close()

    def _pass(self, connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._upstream)) as beyond:
            self._open.add(beyond)
            back = threading.Thread(target=_copy, args=(beyond, connection), daemon=True)
            back.start()
            _copy(connection, beyond)
            back.join()
            self._open.discard(beyond)


@contextlib.contextmanager
def faulty(upstream: int = 0, fault: Fault = Fault.NONE) -> Iterator[FaultyEndpoint]:
    """Open an endpoint for the time of a test."""
    endpoint = FaultyEndpoint(upstream, fault)
    try:
        yield endpoint
    finally:
        endpoint.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
