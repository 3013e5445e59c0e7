"""Steady requests to one address from a thread of its own: half of the clients keep their connection, half do not."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from tests.model_packages import ROW

CLIENTS = 8
TRAEFIK = os.environ.get("TRAEFIK_ADDRESS", "traefik.traefik")
"""Where callers ask for the host of a pipeline whose strategy shares requests out."""


class Load:
    """``with Load(host) as load: ...``; then `load.seen` counts what was answered, and `load.rate` how often a second.

    It never asks again: whatever goes wrong on a connection is counted as such.  `via` is where to ask for the host,
    such as a proxy, where it is not the host itself.  Each request has an id of its own, all ask for the same rows.
    """

    def __init__(
        self, host: str, *, rate: float = 96.0, instances: Sequence[Mapping[str, Any]] = (ROW,), via: str = ""
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.rate = 0.0
        self._address, self._pause = via or host, CLIENTS / rate
        body = json.dumps({"instances": list(instances)}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        self._head, self._body = f"{head}content-length: {len(body)}\r\nx-request-id: ", body
        self._until = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._until.set()
        self._thread.join()

    @property
    def failed(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.seen.items() if not outcome.startswith("200")}

    async def _run(self) -> None:
        began = time.monotonic()
        await asyncio.gather(*(self._client(keeps=number % 2 == 0) for number in range(CLIENTS)))
        self.rate = sum(self.seen.values()) / (time.monotonic() - began)

    async def _client(self, *, keeps: bool) -> None:
        kept: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._until.is_set():
            started = time.monotonic()
            try:
                reader, writer = kept or await asyncio.open_connection(self._address, 80)
                kept = None
                writer.write(f"{self._head}{uuid.uuid4()}\r\n\r\n".encode() + self._body)
                async with asyncio.timeout(30):
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    body = await reader.readexactly(int(head.split(b"content-length: ")[1].split(b"\r")[0]))
                if keeps and b"connection: close" not in head:
                    kept = reader, writer
                else:
                    writer.close()
                status = head.split()[1].decode()
                said = f"{status} version {json.loads(body)['model']['version']}" if status == "200" else status
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                said = f"broken: {error!r}"
            self.seen[said] += 1
            await asyncio.sleep(max(0.0, self._pause - (time.monotonic() - started)))
        if kept:
            kept[1].close()
