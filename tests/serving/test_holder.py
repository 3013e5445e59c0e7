"""The holder: real processes; one socket over releases, crashes and kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from contracts.errors import ConfigError
from serving.versions import Spec
from steps.rollout import process
from steps.rollout.process import NotHealthy, Server
from tests.model_packages import TRUSTED, package, signed

READY = 60.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return signed(package(tmp_path_factory.mktemp("package") / "model"), "tiny@r1")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / ("deep" * 30) / "tiny", "127.0.0.1", 0)
    yield server
    server.stop()


def spec(folder: Path, version: int) -> Spec:
    return Spec(str(folder), "tiny", version, "r1", "d" * 64, TRUSTED)


def release(server: Server, folder: Path, version: int) -> str:
    with server.turn():
        return server.release(spec(folder, version), ready_seconds=READY, drain_seconds=2).url


def version_at(url: str) -> int:
    return int(httpx.get(f"{url}/v1/model", timeout=10).json()["version"])


def eventually(condition: Callable[[], object], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.1)


def test_a_release_answers_and_a_version_that_does_not_load_changes_nothing(
    server: Server, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETRAIN_LEDGER", "planted-secret")
    url = release(server, built, 1)
    before = server.status()
    assert before is not None
    for pid in (before.pid, before.server_pid):
        assert "planted-secret" not in psutil.Process(pid).environ().values()
    with pytest.raises(NotHealthy) as broken:
        release(server, tmp_path / "nothing", 2)
    assert any("there is no model package" in line for line in broken.value.lines)
    with pytest.raises(NotHealthy, match=r"was not ready within 0\.1 s"), server.turn():
        server.release(spec(built, 3), ready_seconds=0.1, drain_seconds=1)
    assert version_at(url) == 1
    assert server.status() == before
    assert release(server, built, 1) == url
    assert server.status() == before, "the same version again starts no process"


def test_a_crashed_version_comes_back_and_a_killed_holder_leaves_the_port_to_the_next(
    server: Server, built: Path
) -> None:
    url = release(server, built, 1)
    first = server.status()
    assert first is not None
    assert first.server_pid is not None
    os.kill(first.server_pid, signal.SIGKILL)
    assert version_at_patiently(url) == 1, "callers wait in the socket's queue meanwhile"

    second = server.status()
    assert second is not None
    assert second.server_pid not in (None, first.server_pid)
    os.kill(second.pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(second.server_pid or 0))
    assert server.status() is None
    assert release(server, built, 2) == url, "the port is kept"
    assert version_at(url) == 2


@pytest.mark.faults
def test_a_holder_that_hangs_is_replaced_at_a_release_and_ended_by_a_stop(
    server: Server, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = release(server, built, 1)
    for end in (lambda: release(server, built, 2), server.stop):
        hangs = server.status()
        assert hangs is not None
        os.kill(hangs.pid, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr(process, "_ANSWER_SECONDS", 1.0)
            assert server.status() is None
            assert end() in (url, hangs.pid)
        eventually(lambda pid=hangs.pid: not psutil.pid_exists(pid))
        eventually(lambda pid=hangs.server_pid: not psutil.pid_exists(pid))
        assert server.status() is None or version_at(url) == 2


def version_at_patiently(url: str) -> int:
    return int(httpx.get(f"{url}/v1/model", timeout=40).json()["version"])


def test_a_kept_port_that_another_took_is_named(server: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        server.home.mkdir(parents=True)
        record = {"pid": 0, "started": 0.0, "host": "127.0.0.1", "port": port, "wanted": server.port}
        (server.home / "holder.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError) as taken:
            release(server, tmp_path, 1)
    assert str(port) in taken.value.message
    assert f"process {os.getpid()}" in str(taken.value.findings[0])
    assert taken.value.findings[0].where == "RETRAIN_SERVER_PORT"


def test_a_first_port_that_another_took_gives_way_to_a_free_one(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        server = Server(tmp_path / "tiny", "127.0.0.1", foreign.getsockname()[1])
        with server.turn(), pytest.raises(NotHealthy):
            server.release(spec(tmp_path / "nothing", 1), ready_seconds=READY, drain_seconds=1)
        status = server.status()
    assert status is not None
    assert status.spec is None
    assert not status.url.endswith(f":{server.port}")
    assert server.stop() == status.pid
    assert server.stop() is None
