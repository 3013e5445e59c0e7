"""The server's sockets: an answer leaves at once."""

from __future__ import annotations

import socket
import threading

from fastapi import FastAPI

from serving.server import DrainingServer, listen


def test_no_answer_waits_for_an_acknowledgement() -> None:
    ready = threading.Event()
    listener = listen("127.0.0.1", 0)
    server = DrainingServer(FastAPI(), drain_seconds=0, on_ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        assert ready.wait(10)
        assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    finally:
        server.should_exit = True
        thread.join(10)
