"""Asks `steps.warm` for the processes of a run, so that the heavy imports are paid once.  Called by `retrain run`.

It only saves time.  What cannot be forked as it would have been started (another program, an environment that a library
reads when it is imported, another system than Linux) is started afresh, and so is everything once the parent is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from steps import warm
from workflows.local.pods import Launch, Process, spawn

STEP = ("-m", "steps")
_READ_EARLY = (
    "PYTHON", "LD_", "LC_", "LANG", "TZ", "PATH", "HOME", "MALLOC_", "ARROW_", "JE_", "OMP_", "KMP_", "GOMP_",
    "OPENBLAS_", "MKL_", "MLFLOW_",
)  # fmt: skip
"""Variables that begin so are read when the interpreter starts or a library is imported."""
_PATIENCE = 30.0
"""Seconds that a parent may take to fork; an import, in which it answers nobody, takes a few."""


class _Forked:
    """A step that is not our child: its parent tells us its id and how it ended."""

    def __init__(self, pid: int, answers: socket.socket) -> None:
        self.pid = pid
        self._answers = answers
        self._turn = threading.Lock()
        self._code: int | None = None

    def wait(self) -> int:
        """Block until it has ended; a step whose parent was killed counts as killed, and the runner kills it."""
        with self._turn:
            if self._code is None:
                with self._answers:
                    self._code = int(self._answers.recv(16) or -9)
            return self._code


class WarmParent:
    """A running ``python -m steps.warm``; its `spawn` fits the runner."""

    def __init__(self, python: str = sys.executable) -> None:
        self._start = (python, *STEP)
        self._environment = dict(os.environ)
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [python, "-m", warm.__name__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                env=self._environment | warm.ONE_THREAD, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The parent's process id."""
        return self._process.pid

    def spawn(self, step: Launch, guard: int) -> Process:
        """Fork a step, or start it afresh where a fork would not be the same."""
        words = step.command[len(self._start) :]
        if step.result is None and (*self._start, *words) == tuple(step.command) and self._same(step.env):
            request = {"words": list(words), "environment": dict(step.env), "cwd": str(step.cwd)}
            with contextlib.suppress(OSError):  # the parent is gone, or the request is too long
                if (forked := self._ask(json.dumps(request).encode(), step.log, guard)) is not None:
                    return forked
        return spawn(step, guard)

    def close(self) -> None:
        """End the parent."""
        self._requests.close()
        self._process.wait()

    def _ask(self, request: bytes, log: Path, guard: int) -> _Forked | None:
        """Return the fork; None when the parent ended before it made one, which the socket's end says."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, log.open("ab") as file:
            if len(request) > warm.REQUEST:
                return None
            socket.send_fds(self._requests, [request], [file.fileno(), guard, theirs.fileno()])
        ours.settimeout(_PATIENCE)
        try:
            pid = ours.recv(16)
        except TimeoutError:  # it hangs: once it is killed, either a fork had been made, which answers, or none comes
            self._process.kill()
            pid = ours.recv(16)
        ours.settimeout(None)
        if pid:
            return _Forked(int(pid), ours)
        ours.close()
        return None

    def _same(self, env: Mapping[str, str]) -> bool:
        return _early(env) == _early(self._environment)


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_READ_EARLY)}


@contextlib.contextmanager
def warm_parent(*, wanted: bool) -> Iterator[WarmParent | None]:
    """Hold a warm parent for the length of a run; None where none is wanted or possible."""
    if not wanted or not sys.platform.startswith("linux"):
        yield None
        return
    parent = WarmParent()
    try:
        yield parent
    finally:
        parent.close()
