"""The small process that owns the server's socket and outlives every run.  Asked by `steps.rollout.process`.

It binds once and hands the listening socket to each version's uvicorn (``python -m serving``).  A new version is ready
before the old one drains; one that does not get ready changes nothing.  Of a crashed version it starts another process;
after `MAX_CRASHES` it gives up and ends, so that callers are refused rather than left waiting.

Standard library and psutil only, and asked in JSON lines over a Unix socket, so that it stays small while it holds.
Everything is in one folder: ``control.sock``, ``holder.json`` (pid, start time, address), ``server.log``, ``lock``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

LOG = logging.getLogger("retrain.holder")

CONTROL = "control.sock"
RECORD = "holder.json"
SERVER_LOG = "server.log"
LOCK = "lock"

MAX_CRASHES = 5
CRASH_WINDOW_SECONDS = 60.0
REBIND_SECONDS = 5.0
"""How long to wait for the port: children of a killed holder need a moment to let go of it."""
MAX_LOG_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Spec:
    """What a version's process serves."""

    package: str
    name: str
    version: int
    run_id: str
    dataset_sha256: str

    def arguments(self) -> list[str]:
        """Return it as arguments of ``python -m serving``."""
        texts = {"package": self.package, "name": self.name, "version": str(self.version)}
        texts |= {"run-id": self.run_id, "dataset-sha256": self.dataset_sha256}
        return [part for key, value in texts.items() for part in (f"--{key}", value)]


@dataclass(frozen=True)
class Child:
    """A running version; `life` is our end of the pipe whose closing ends it."""

    spec: Spec
    process: asyncio.subprocess.Process
    life: int
    drain_seconds: float


class NotReadyError(Exception):
    """A version's process did not come up."""


class Holder:
    """Holds the listening socket, the current child and those that drain."""

    def __init__(self, listener: socket.socket, home: Path, finish: Callable[[], None]) -> None:
        self._listener, self._home, self._finish = listener, home, finish
        self._current: Child | None = None
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
        }

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
                    cwd=self._home, env=_environment(),
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
                    self._current = await self._start(child.spec, 60, child.drain_seconds)
                    return
                except NotReadyError as error:
                    LOG.error("it did not come up again: %s", error.args[0])
            self._current = None
        LOG.error("giving up on version %d", child.spec.version)
        self._spawn(self.stop())

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        _TASKS.add(task)
        task.add_done_callback(_TASKS.discard)
        return task


_TASKS: set[asyncio.Task[None]] = set()
"""asyncio itself holds its tasks only weakly."""


async def _answer(holder: Holder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one control connection: one JSON line in, one out."""
    try:
        request = json.loads(await reader.readline())
        match request.pop("command"):
            case "release":
                spec = Spec(**request["spec"])
                started = await holder.release(spec, request["ready_seconds"], request["drain_seconds"])
                answer = {"ok": True, "started": started} | holder.status()
            case "status":
                answer = {"ok": True} | holder.status()
            case "stop":
                answer = {"ok": True} | holder.status()
                await holder.stop()
            case other:
                answer = {"ok": False, "reason": f"unknown command {other}", "log": []}
    except NotReadyError as error:
        answer = {"ok": False, "reason": error.args[0], "log": error.args[1]}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        answer = {"ok": False, "reason": f"{type(error).__name__}: {error}", "log": []}
    with contextlib.suppress(ConnectionError):
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()


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


def _environment() -> dict[str, str]:
    # one core answers one request; a batch must not take the machine from the runs beside it
    return {"OMP_NUM_THREADS": "1"} | dict(os.environ)


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


async def _serve(listener: socket.socket, home: Path, told: Callable[[str], None]) -> None:
    finished = asyncio.Event()
    holder = Holder(listener, home, finished.set)
    control = _bind_control(home)
    server = await asyncio.start_unix_server(lambda r, w: _answer(holder, r, w), sock=control)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: holder._spawn(holder.stop()))
    told("ok")
    await finished.wait()
    server.close()
    (home / CONTROL).unlink(missing_ok=True)


def _bind_control(home: Path) -> socket.socket:
    # by a relative name: a socket's path is limited to about 100 bytes, and a home may lie deep
    back = Path.cwd()
    os.chdir(home)
    try:
        Path(CONTROL).unlink(missing_ok=True)
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind(CONTROL)
        Path(CONTROL).chmod(0o600)
    finally:
        os.chdir(back)
    return control


def bind(host: str, port: int, *, kept: bool) -> socket.socket:
    """Bind the server's socket.

    A port that answered before (`kept`) is waited for a little and then insisted on; a first choice that is taken
    gives way to any free port.

    Raises
    ------
    OSError
        When the address cannot be had.
    """
    deadline = time.monotonic() + (REBIND_SECONDS if kept else 0)
    while True:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(2048)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or port == 0:
                raise
            if kept and time.monotonic() >= deadline:
                raise
            if not kept:
                port = 0
        time.sleep(0.1)


def main(argv: list[str] | None = None) -> int:
    """Hold until told to stop.  Tells ``--tell-fd`` in a word: ``ok``, ``busy`` (another holds), ``error`` and why."""
    parser = argparse.ArgumentParser(prog="python -m serving.holder")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kept", action="store_true", help="the port answered before: no other will do")
    parser.add_argument("--wanted", type=int, required=True, help="the port the settings ask for, as a record")
    parser.add_argument("--tell-fd", type=int, required=True)
    options = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d holder %(levelname)s %(message)s", stream=sys.stderr
    )

    def tell(word: str) -> None:
        with contextlib.suppress(OSError):
            os.write(options.tell_fd, word.encode())
            os.close(options.tell_fd)

    lock = os.open(options.home / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tell("busy")
        return 0
    try:
        listener = bind(options.host, options.port, kept=options.kept)
    except OSError as error:
        tell(f"error {error.errno or 0} {error.strerror}")
        return 1
    record = {"pid": os.getpid(), "host": options.host, "port": listener.getsockname()[1], "wanted": options.wanted}
    _write(options.home / RECORD, json.dumps(record | {"started": psutil.Process().create_time()}))
    asyncio.run(_serve(listener, options.home, tell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
