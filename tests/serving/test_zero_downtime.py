"""No request fails while versions are released one after the other: on new and on kept-alive connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path

from serving.versions import Spec
from steps.rollout.process import Server
from tests.model_packages import ROW, TRUSTED, package, signed

RATE = 80.0
"""Requests a second, over all clients."""
CLIENTS = 8
RELEASES = 2

BODY = json.dumps({"instances": [ROW]}).encode()
REQUEST = (
    b"POST /v1/predict HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
) + BODY


class Client:
    """A plain HTTP/1.1 client that never tries again: whatever goes wrong on a connection is seen."""

    def __init__(self, port: int, *, keeps: bool, seen: Counter[str]) -> None:
        self._port, self._keeps, self._seen = port, keeps, seen
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, until: asyncio.Event) -> None:
        pause = CLIENTS / RATE
        while not until.is_set():
            started = time.monotonic()
            try:
                self._seen[await self.ask()] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                self._open = None
                self._seen[f"broken: {error!r}"] += 1
            await asyncio.sleep(max(0.0, pause - (time.monotonic() - started)))
        if self._open:
            self._open[1].close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._open = self._open or await asyncio.open_connection("127.0.0.1", self._port)
        return self._open

    async def ask(self) -> str:
        reader, writer = await self.connect()
        writer.write(REQUEST)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
        if self._keeps and b"connection: close" not in head:
            self._open = (reader, writer)
        else:
            self._open = None
            writer.close()
        status = head.split()[1].decode()
        return f"{status} version {json.loads(body)['model']['version']}" if status == "200" else status


async def drive(server: Server, folder: Path) -> Counter[str]:
    async def release(version: int) -> str:
        spec = Spec(str(folder), "tiny", version, "r1", "d" * 64, TRUSTED)
        status = await asyncio.to_thread(server.release, spec, ready_seconds=60, drain_seconds=15)
        return status.url

    port = int((await release(1)).rpartition(":")[2])
    seen: Counter[str] = Counter()
    until = asyncio.Event()
    clients = [Client(port, keeps=i % 2 == 0, seen=seen).run(until) for i in range(CLIENTS)]
    running = asyncio.gather(*clients)
    began = time.monotonic()
    for version in range(2, 2 + RELEASES):
        late = Client(port, keeps=False, seen=seen)
        await late.connect()
        await release(version)
        await asyncio.sleep(0.5)
        seen[await late.ask()] += 1  # its connection was accepted by the version before, which drains
    until.set()
    await running
    seen["per second"] = int(sum(seen.values()) / (time.monotonic() - began))
    return seen


def test_no_request_fails_while_releasing(tmp_path: Path) -> None:
    server = Server(tmp_path / "tiny", "127.0.0.1", 0)
    try:
        seen = asyncio.run(drive(server, signed(package(tmp_path / "model"), "tiny@r1")))
    finally:
        server.stop()
    assert seen.pop("per second") >= 50
    assert {outcome for outcome in seen if not outcome.startswith("200")} == set(), seen
    assert {f"200 version {v}" for v in range(1, 2 + RELEASES)} == set(seen), "every version answered"
