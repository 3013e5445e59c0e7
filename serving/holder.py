"""The small process that owns the server's socket and outlives every run.  Asked by `steps.rollout.process`.

It binds once and hands the listening socket to each version's uvicorn (``python -m serving``).  A new version is ready
before the old one drains; one that does not get ready changes nothing.  Of a crashed version it starts another process;
after a few it gives up and ends, so that callers are refused rather than left waiting.

Standard library and psutil only, so that it stays small (23 MiB); asked in JSON lines over a Unix socket.  Its folder
holds ``control.sock``, ``holder.json`` (pid, start time, address), ``server.log`` and ``lock``.
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
from pathlib import Path

import psutil

from serving.versions import NotReadyError, Spec, Versions

LOG = logging.getLogger("retrain.holder")

CONTROL = "control.sock"
RECORD = "holder.json"
LOCK = "lock"

REBIND_SECONDS = 5.0
"""How long to wait for the port: children of a killed holder need a moment to let go of it."""


async def _answer(versions: Versions, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one control connection: one JSON line in, one out."""
    try:
        request = json.loads(await reader.readline())
        match request.pop("command"):
            case "release":
                spec = Spec(**request["spec"])
                started = await versions.release(spec, request["ready_seconds"], request["drain_seconds"])
                answer = {"ok": True, "started": started} | versions.status()
            case "status":
                answer = {"ok": True} | versions.status()
            case "stop":
                answer = {"ok": True} | versions.status()
                await versions.stop()
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


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


async def _serve(listener: socket.socket, home: Path, told: Callable[[str], None]) -> None:
    finished = asyncio.Event()
    versions = Versions(listener, home, finished.set)
    control = _bind_control(home)
    server = await asyncio.start_unix_server(lambda r, w: _answer(versions, r, w), sock=control)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, versions.stop_soon)
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
