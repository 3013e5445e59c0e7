"""The desk's target: a uvicorn process a version, behind a socket that `serving.holder` keeps.

`steps.rollout.desk` rolls out; `retrain stop` and `doctor` use the same functions.  Each pipeline has a folder of its
own under the setting `server_home`, and in it one holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

import serving
from contracts.errors import ConfigError, Finding, StageError
from contracts.settings import PREFIX, Settings
from serving.holder import CONTROL, LOCK, RECORD, bind
from serving.versions import SERVER_LOG, Spec
from steps.rollout.target import NotHealthy

_START_SECONDS = 15.0
_TURN_SECONDS = 600.0
_ANSWER_SECONDS = 10.0
"""A holder that does not say its status within these hangs: it answers at once, whatever else it does."""
_SECRET_PREFIXES = (PREFIX, "AWS_", "MLFLOW_")


class _NoAnswerError(StageError):
    """The holder took the question and does not answer."""


@dataclass(frozen=True)
class Status:
    """What a holder says of itself."""

    url: str
    pid: int
    spec: Spec | None
    server_pid: int | None
    outdated: bool
    """It is of before an upgrade, and does not know all that it would have to hand on."""


@dataclass(frozen=True)
class Server:
    """The local server of one pipeline.

    Parameters
    ----------
    home : Path
        Folder of its holder.
    host, port
        What to bind the first time; a port that has answered once is kept.
    """

    home: Path
    host: str
    port: int

    @classmethod
    def of(cls, settings: Settings, pipeline: str) -> Server:
        """Return the server of a pipeline.

        Raises
        ------
        ConfigError
            The setting `server_home` is missing.
        """
        if not settings.server_home:
            raise ConfigError("no folder for the local server", remedy="set RETRAIN_SERVER_HOME")
        return cls(Path(settings.server_home) / pipeline, settings.server_host, settings.server_port)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the right to release here: one process at a time, let go when it dies.

        Raises
        ------
        StageError
            Another release does not end.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.home / "turn").open("w") as file:
            deadline = time.monotonic() + _TURN_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StageError(f"another release holds {self.home} and does not end") from None
                    time.sleep(0.2)
            yield

    def status(self) -> Status | None:
        """Return what serves, None when nothing holds the socket or what does hangs."""
        try:
            answer = self._ask({"command": "status"}, timeout=_ANSWER_SECONDS)
        except _NoAnswerError:
            return None
        return None if answer is None else self._status(answer)

    def release(self, spec: Spec, *, ready_seconds: float, drain_seconds: float) -> Status:
        """Serve a version: started and ready before the old one drains.  Nothing happens when it serves already.

        Raises
        ------
        NotHealthy
            It did not come up; the old one was not touched.
        ConfigError
            The socket cannot be had.
        """
        self._ensure_holder()
        command = {
            "command": "release", "spec": asdict(spec), "ready_seconds": ready_seconds, "drain_seconds": drain_seconds,
        }  # fmt: skip
        answer = self._ask(command, timeout=ready_seconds + 30)
        if answer is None:
            raise StageError(f"the server's holder ended while it was asked; see {self.home / SERVER_LOG}")
        if not answer["ok"]:
            raise NotHealthy(answer["reason"], answer["log"])
        return self._status(answer)

    def stop(self) -> int | None:
        """Drain and end the server and its holder; return the holder's process id, None when nothing ran."""
        holder, answer = _process(self._record()), None
        try:
            if self._ask({"command": "status"}, timeout=_ANSWER_SECONDS) is not None:
                answer = self._ask({"command": "stop"}, timeout=120)
            elif holder is not None:
                # it lives, but nobody listens to us: by its own pid and start time, so never another's process
                holder.terminate()
        except _NoAnswerError:
            if holder is not None:
                holder.kill()  # it hangs; what it started drains and ends when it is gone
        if holder is not None:
            try:
                holder.wait(60)
            except psutil.TimeoutExpired:
                holder.kill()
        return int(answer["pid"]) if answer else holder.pid if holder else None

    def port_problem(self) -> Finding | None:
        """Say why the port cannot be had; None when it can, when our own holder has it, or when any other will do."""
        record = self._record()
        if _process(record) is not None:
            return None
        kept = record is not None and (record["host"], record["wanted"]) == (self.host, self.port)
        port = int(record["port"]) if record is not None and kept else self.port
        try:
            bind(self.host, port, kept=kept).close()
        except OSError as error:
            return _cannot_bind(self.host, port, f"{error.errno} {error.strerror}").findings[0]
        return None

    def _ensure_holder(self) -> None:
        if self.status() is not None:
            return
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.home.chmod(0o700)
        if (dumb := _process(self._record())) is not None:
            # what it started drains and ends when it is gone, and lets go of the port
            dumb.kill()
            dumb.wait(10)
        record = self._record()
        kept = record is not None and (record["host"], record["wanted"]) == (self.host, self.port)
        port = int(record["port"]) if record is not None and kept else self.port
        word = self._start_holder(port, kept)
        if word.startswith("error"):
            raise _cannot_bind(self.host, port, word.removeprefix("error").strip())
        deadline = time.monotonic() + _START_SECONDS
        while self.status() is None:
            if time.monotonic() > deadline:
                raise StageError(f"the server's holder does not answer; see {self.home / SERVER_LOG}")
            time.sleep(0.05)

    def _start_holder(self, port: int, kept: bool) -> str:
        heard, told = os.pipe()
        arguments = ["--home", str(self.home), "--host", self.host, "--port", str(port), "--wanted", str(self.port)]
        arguments += [*(["--kept"] if kept else []), "--tell-fd", str(told)]
        with os.fdopen(heard, "rb") as answer:
            try:
                with (self.home / SERVER_LOG).open("ab") as log:
                    # its own session: the runner ends a step's process group, and this is to outlive the run
                    process = subprocess.Popen(
                        [sys.executable, "-m", "serving.holder", *arguments],
                        pass_fds=(told,), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home,
                        start_new_session=True, env=_environment(),
                    )  # fmt: skip
            finally:
                os.close(told)
            word = answer.read().decode()
        if word != "ok":
            process.wait()
        return word or "error 0 it ended at once"

    def _record(self) -> dict[str, Any] | None:
        try:
            record = json.loads((self.home / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def _status(self, answer: dict[str, Any]) -> Status:
        record = self._record() or {"host": self.host, "port": self.port}
        spec = Spec(**answer["spec"]) if answer["spec"] else None
        host = f"[{record['host']}]" if ":" in record["host"] else record["host"]
        outdated = not {each.name for each in fields(Spec)} <= set(answer.get("knows", ()))
        return Status(f"http://{host}:{record['port']}", answer["pid"], spec, answer["server_pid"], outdated)

    def _ask(self, command: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            connection.settimeout(timeout)
            try:
                connection.connect(stack.enter_context(_short(self.home / CONTROL)))
                connection.sendall(json.dumps(command).encode() + b"\n")
                with connection.makefile("rb") as answer:
                    line = answer.readline()
            except (FileNotFoundError, ConnectionError, NotADirectoryError):
                return None
            except TimeoutError:
                raise _NoAnswerError(f"the server's holder does not answer; see {self.home / SERVER_LOG}") from None
        return json.loads(line) if line else None


def servers(settings: Settings) -> list[Server]:
    """Return the servers that were ever started under the setting `server_home`."""
    if not settings.server_home or not (root := Path(settings.server_home)).is_dir():
        return []
    return [Server.of(settings, folder.name) for folder in sorted(root.iterdir()) if (folder / LOCK).exists()]


def serving_version(settings: Settings, pipeline: str) -> int | None:
    """Return the version that answers for a pipeline on this machine, None when none does."""
    status = Server.of(settings, pipeline).status()
    return status.spec.version if status is not None and status.spec is not None else None


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Yield a name for `path` that fits into a socket address (about 100 bytes)."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    # a step's own TMPDIR lies deep in the home
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        link = Path(folder) / "h"
        link.symlink_to(path.parent)
        yield str(link / path.name)


def _environment() -> dict[str, str]:
    # what serves needs no secret of ours; and it must find this very package wherever it stands
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_SECRET_PREFIXES)}
    root = str(Path(str(serving.__file__)).resolve().parents[1])
    before = [part for part in kept.get("PYTHONPATH", "").split(os.pathsep) if part]
    return kept | {"PYTHONPATH": os.pathsep.join([root, *before])}


def _process(record: dict[str, Any] | None) -> psutil.Process | None:
    """Return the recorded process while it lives: same pid and same start time, within what a set clock moves it."""
    if record is None:
        return None
    try:
        process = psutil.Process(int(record["pid"]))
        same = abs(process.create_time() - float(record["started"])) < 2
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, ValueError):
        return None


def _cannot_bind(host: str, port: int, reason: str) -> ConfigError:
    owner = ""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                owner = f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    finding = Finding(
        where=f"{PREFIX}SERVER_PORT",
        what=f"{reason.partition(' ')[2] or reason}{owner}",
        remedy="end that process, or set another port (0: any free one)",
    )
    return ConfigError(f"the server cannot listen on {host}:{port}", findings=[finding])
