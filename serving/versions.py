"""The processes of a pipeline's versions: one serves, those before it drain.  Run by `serving.holder`, in its process.

Standard library only, as the holder, and names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from contracts.names import MODEL_KEYS

LOG = logging.getLogger("retrain.holder")

SERVER_LOG = "server.log"
MAX_CRASHES = 5
CRASH_WINDOW_SECONDS = 60.0
RESTART_SECONDS = 60.0
MAX_LOG_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Spec:
    """What a version's process serves."""

    package: str
    name: str
    version: int
    run_id: str
    dataset_sha256: str
    trusted_keys: str = ""
    """The setting `model_keys`; without any, no version serves."""
    packages: str = ""
    """Folder of what its own modules import beside retrain's libraries."""
    records: str = ""
    """Folder of its prediction records; empty: none are kept."""
    record_share: float = 0.0
    record_inputs: bool = False

    def arguments(self) -> list[str]:
        """Return it as arguments of ``python -m serving``."""
        texts = {"package": self.package, "name": self.name, "version": str(self.version)}
        texts |= {"run-id": self.run_id, "dataset-sha256": self.dataset_sha256}
        if self.records:
            texts |= {"records": self.records, "record-share": str(self.record_share)}
        inputs = ["--record-inputs"] if self.records and self.record_inputs else []
        return [part for key, value in texts.items() for part in (f"--{key}", value)] + inputs


@dataclass(frozen=True)
class Child:
    """A running version; `life` is our end of the pipe whose closing ends it."""

    spec: Spec
    process: asyncio.subprocess.Process
    life: int
    drain_seconds: float


class NotReadyError(Exception):
    """A version's process did not come up."""


class Versions:
    """Holds the listening socket, the current child and those that drain."""

    def __init__(self, listener: socket.socket, home: Path, finish: Callable[[], None]) -> None:
        self._listener, self._home, self._finish = listener, home, finish
        self._current: Child | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining: set[asyncio.Task[None]] = set()
        self._crashes: list[float] = []
        self._turn = asyncio.Lock()

    async def release(self, spec: Spec, ready_seconds: float, drain_seconds: float) -> bool:
        """Serve `spec`; say whether anything had to be started.

        Raises
        ------
        NotReadyError
            It did not get ready; what served before still does.
        """
        async with self._turn:
            old = self._current
            if old is not None and old.spec == spec and old.process.returncode is None:
                return False
            self._crashes.clear()
            self._current = await self._start(spec, ready_seconds, drain_seconds)
            if old is not None:
                self._end(old)
            return True

    def status(self) -> dict[str, Any]:
        """Return what serves."""
        child = self._current
        alive = child is not None and child.process.returncode is None
        return {
            "pid": os.getpid(),
            "spec": asdict(child.spec) if child and alive else None,
            "server_pid": child.process.pid if child and alive else None,
            "draining": len(self._draining),
            "crashes": len(self._crashes),
            "knows": [each.name for each in fields(Spec)],
        }

    def stop_soon(self) -> None:
        """Begin `stop`; for signal handlers."""
        self._spawn(self.stop())

    async def stop(self) -> None:
        """Drain the current version and end."""
        async with self._turn:
            if self._current is not None:
                child, self._current = self._current, None
                self._end(child)
        self._listener.close()
        while self._draining:
            await asyncio.wait(self._draining)
        self._finish()

    async def _start(self, spec: Spec, ready_seconds: float, drain_seconds: float) -> Child:
        ready, ready_child = os.pipe()
        life_child, life = os.pipe()
        given = (self._listener.fileno(), ready_child, life_child)
        log_at = _log_start(self._home / SERVER_LOG)
        try:
            with (self._home / SERVER_LOG).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "serving", *spec.arguments(), "--drain-seconds", str(drain_seconds),
                    "--fd", str(given[0]), "--ready-fd", str(given[1]), "--life-fd", str(given[2]),
                    pass_fds=given, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                    cwd=self._home, env=_environment(spec),
                )  # fmt: skip
        finally:
            os.close(ready_child)
            os.close(life_child)
        child = Child(spec, process, life, drain_seconds)
        try:
            word = await asyncio.wait_for(_read_pipe(ready), ready_seconds)
            problem = "" if word == b"ready" else "ended before it was ready"
        except TimeoutError:
            problem = f"was not ready within {ready_seconds:g} s"
        if problem:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            code = await process.wait()
            os.close(life)
            problem += f" (exit code {code})" if code >= 0 else ""
            raise NotReadyError(f"version {spec.version} {problem}", _log_since(self._home / SERVER_LOG, log_at))
        LOG.info("version %d answers as process %d", spec.version, process.pid)
        self._spawn(self._watch(child))
        return child

    def _end(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
        task = self._spawn(self._drained(child))
        self._draining.add(task)
        task.add_done_callback(self._draining.discard)

    async def _drained(self, child: Child) -> None:
        try:
            await asyncio.wait_for(child.process.wait(), child.drain_seconds + 5)
        except TimeoutError:
            LOG.warning("process %d did not end after draining; killed", child.process.pid)
            child.process.kill()
            await child.process.wait()
        os.close(child.life)

    async def _watch(self, child: Child) -> None:
        code = await child.process.wait()
        async with self._turn:
            if self._current is not child:
                return
            LOG.warning("version %d ended unexpectedly with code %d", child.spec.version, code)
            os.close(child.life)
            now = time.monotonic()
            self._crashes = [at for at in self._crashes if now - at < CRASH_WINDOW_SECONDS] + [now]
            if len(self._crashes) <= MAX_CRASHES:
                try:
                    self._current = await self._start(child.spec, RESTART_SECONDS, child.drain_seconds)
                    return
                except NotReadyError as error:
                    LOG.error("it did not come up again: %s", error.args[0])
            self._current = None
        LOG.error("giving up on version %d", child.spec.version)
        self._spawn(self.stop())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        # asyncio itself holds its tasks only weakly
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _read_pipe(fd: int) -> bytes:
    """Return what comes out of a pipe first; empty when it closes.  Closes our end."""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await readable.wait()
        return os.read(fd, 16)
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def _log_start(log: Path) -> int:
    """Return where a new child's lines will begin; a log that has grown large is put aside first."""
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    return log.stat().st_size if log.exists() else 0


def _log_since(log: Path, start: int, lines: int = 12) -> list[str]:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()[-lines:]


def _environment(spec: Spec) -> dict[str, str]:
    # one core answers one request; a batch must not take the machine from the runs beside it
    environment = {"OMP_NUM_THREADS": "1"} | dict(os.environ) | {MODEL_KEYS: spec.trusted_keys}
    if spec.packages:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), spec.packages)))
    return environment
