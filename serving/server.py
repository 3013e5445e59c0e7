"""uvicorn, ended without breaking a connection.  Called by ``python -m serving``.

uvicorn's own shutdown closes idle kept-alive connections at once: a client that has just sent its next request on one
of them gets no answer.  Here the old process stops accepting, tells every connection with its next answer to close,
and closes idle ones only when the drain time is over.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Callable
from email.utils import formatdate

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LOG = logging.getLogger("retrain.server")

KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than clients keep theirs, so that it is they who close it."""
CONNECTION_SECONDS = 30.0
"""How long a connection is kept, by its first answer after that.  A proxy's connections lead where its Service led when
they were made: kept for good, a canary or a server that came with the load would never hear of a request."""
_SETTLE_SECONDS = 0.05


class _AgeingConnection(HttpToolsProtocol):
    """A connection that is told to close when it is old; not all at once where many began at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._old_from = time.monotonic() + CONNECTION_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311  no secret

    def on_headers_complete(self) -> None:
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and time.monotonic() > self._old_from:
            self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]


class DrainingServer(uvicorn.Server):
    """A uvicorn server that drains on SIGTERM.

    Parameters
    ----------
    app : FastAPI
        What it serves.
    drain_seconds : float
        How long open connections may take to send their last request and get its answer.
    on_ready : callable
        Called once, when connections are accepted.
    """

    def __init__(self, app: FastAPI, *, drain_seconds: float, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app, loop="asyncio", http=_AgeingConnection, ws="none", lifespan="off", access_log=False,
                log_config=None, proxy_headers=False, server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        self._drain_seconds, self._on_ready = drain_seconds, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept."""
        for listener in sockets or []:
            # connections inherit it; asyncio sets it only where a socket names its protocol.  Without it the body of an
            # answer waits for the client's delayed acknowledgement of its head, some 40 ms
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then let uvicorn close what is left."""
        listening = sockets or []
        loop = asyncio.get_running_loop()
        for listener in listening:
            loop.remove_reader(listener)
        # What was accepted a moment ago becomes a connection that is known before the server object is closed:
        # asyncio (up to 3.11) would drop it.
        await asyncio.sleep(_SETTLE_SECONDS)
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + self._drain_seconds
        LOG.info("draining %d connections for up to %g s", len(self.server_state.connections), self._drain_seconds)
        # In place, so that requests already begun see it too.
        self.server_state.default_headers.append((b"connection", b"close"))
        while self.server_state.connections and time.monotonic() < deadline:
            self.server_state.default_headers[:] = [
                (b"date", formatdate(usegmt=True).encode()),
                (b"connection", b"close"),
            ]
            await asyncio.sleep(_SETTLE_SECONDS)
        if left := len(self.server_state.connections):
            LOG.info("closing %d connections that stayed idle", left)
        await super().shutdown(sockets)


def listen(host: str, port: int) -> socket.socket:
    """Bind and return a listening socket.

    Raises
    ------
    OSError
        When host or port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener
