"""What the server costs: one-row predictions a second beside an ASGI app that answers a constant, in one run; and what
records cost, of every request.

``python -m tests.benchmarks.serving [--package DIR] [--seconds S] [--clients N]``: a packaged model, as a training
leaves it under its MLflow model's ``artifacts/package``.  Without one, a small model is made.  All servers are uvicorn
as `serving.server` sets it up; they take turns, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from contracts.names import MODEL_KEYS
from serving.model import PackagedModel
from serving.server import DrainingServer
from tests.model_packages import TRUSTED, package, signed

TURNS = 3
CONSTANT = b'{"predictions":[0]}'


async def constant(scope: dict, receive: object, send: object) -> None:
    """Read the body and answer the same to everything."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(CONSTANT)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": CONSTANT})


async def ask(port: int, body: bytes, until: float, taken: list[float]) -> None:
    """Send one request after the other on one connection, and note how long each took."""
    head = (
        f"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    request = head.encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.perf_counter() < until:
        started = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        taken.append(time.perf_counter() - started)
    writer.close()


async def load(port: int, body: bytes, seconds: float, clients: int) -> list[float]:
    """Return the seconds of every request that `clients` connections made."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    await asyncio.gather(*(ask(port, body, until, taken) for _ in range(clients)))
    return taken


def start(arguments: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    """Start a server on a free port and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {MODEL_KEYS: TRUSTED}
    command = [sys.executable, *arguments, "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.05)
    sys.exit(f"{' '.join(arguments)} ended with {process.returncode}")


def measure(folder: Path, records: Path, seconds: float, clients: int) -> dict[str, dict[str, float]]:
    """Return requests a second and latencies of each server."""
    body = json.dumps({"instances": PackagedModel.load(folder).example[:1]}).encode()
    serve = ["-m", "serving", "--package", str(folder), "--name", "benchmark", "--version", "1"]
    serve += ["--run-id", "benchmark", "--dataset-sha256", "0" * 64, "--host", "127.0.0.1", "--drain-seconds", "1"]
    servers = {
        "model": start(serve),
        "recorded": start([*serve, "--records", str(records), "--record-share", "1"]),
        "constant": start(["-m", "tests.benchmarks.serving", "--constant"]),
    }
    taken: dict[str, list[float]] = {name: [] for name in servers}
    processor = dict.fromkeys(servers, 0.0)
    try:
        for turn in range(TURNS + 1):
            for name, (process, port) in servers.items():
                before = sum(psutil.Process(process.pid).cpu_times()[:2])
                found = asyncio.run(load(port, body, seconds / TURNS if turn else 0.5, clients))
                if turn:
                    taken[name] += found
                    processor[name] += sum(psutil.Process(process.pid).cpu_times()[:2]) - before
    finally:
        for process, _ in servers.values():
            process.terminate()
            process.wait(20)
    return {name: summary(found, seconds, processor[name]) for name, found in taken.items()}


def summary(taken: Sequence[float], seconds: float, processor: float) -> dict[str, float]:
    """Return requests a second, the median and the 99th percentile, and the processor's time a request, in ms."""
    parts = statistics.quantiles(taken, n=100)
    return {
        "requests_a_second": round(len(taken) / seconds),
        "p50_ms": round(parts[49] * 1000, 3),
        "p99_ms": round(parts[98] * 1000, 3),
        "processor_ms": round(processor / len(taken) * 1000, 4),
    }


def main() -> None:
    """Measure and print; with ``--constant``, be the server of constants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path)
    parser.add_argument("--seconds", type=float, default=9)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--constant", action="store_true")
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    if options.constant:
        listener = socket.create_server(("127.0.0.1", options.port))
        DrainingServer(constant, drain_seconds=1, on_ready=lambda: None).run([listener])
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "package"
        signed(shutil.copytree(options.package, folder) if options.package else package(folder), "benchmark@benchmark")
        found = measure(folder, Path(scratch) / "records", options.seconds, options.clients)
    print(f"{'':10} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'processor ms':>13}")
    for name, row in found.items():
        times = f"{row['p50_ms']:8.2f} {row['p99_ms']:8.2f} {row['processor_ms']:13.3f}"
        print(f"{name:10} {row['requests_a_second']:8.0f} {times}")
    ratio = found["model"]["requests_a_second"] / found["constant"]["requests_a_second"]
    kept = found["recorded"]["processor_ms"] / found["model"]["processor_ms"]
    ratios = {"model/constant": round(ratio, 3), "recorded/model, processor": round(kept, 3)}
    print(json.dumps({**found, **ratios, "clients": options.clients}))


if __name__ == "__main__":
    main()
