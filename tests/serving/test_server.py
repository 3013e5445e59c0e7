"""The server's sockets: an answer leaves at once, and no connection is kept for good."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi import FastAPI

from serving import server as module
from serving.server import DrainingServer, listen


@contextmanager
def serving() -> Iterator[socket.socket]:
    """Serve an app without routes; yield the socket that listens."""
    ready = threading.Event()
    listener = listen("127.0.0.1", 0)
    server = DrainingServer(FastAPI(), drain_seconds=0, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(10)
        yield listener
    finally:
        server.should_exit = True
        thread.join(10)


def test_no_answer_waits_for_an_acknowledgement() -> None:
    with serving() as listener:
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_connection_that_is_old_is_told_to_close_with_its_next_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTION_SECONDS", 1.0)

    def told(client: http.client.HTTPConnection) -> str | None:
        client.request("GET", "/")
        answer = client.getresponse()
        answer.read()
        return answer.getheader("connection")

    with serving() as listener:
        client = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=10)
        assert [told(client), told(client)] == [None, None]
        time.sleep(1.3)
        assert told(client) == "close"
        assert told(client) is None, "the next one is new"
        client.close()
