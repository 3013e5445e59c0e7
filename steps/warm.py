"""A process that has the heavy imports done, and forks a step from itself: ``python -m steps.warm FD``.  Linux only.

`workflows.cli.warm` starts it beside a run and asks for steps on the socket FD; at the socket's end it ends.  It
imports while nobody asks, and never starts a thread, so that a fork is whole.  Afterwards a fork is a step like any
other: `steps.__main__` runs in it, in a process group of its own, under the environment that it was given.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import socket
import sys
import tempfile
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from contracts.stages import STAGES
from steps import __main__ as step
from steps.mlflow_connection import set_defaults

REQUEST = 1 << 18
"""Bytes of the longest request."""
FDS = ("log", "guard", "answers")
"""What comes with a request: where output goes, the guard's pipe, and the socket for process id and exit code."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Libraries that start threads when they are imported are told not to; a fork gives BLAS its threads back."""
_LATER = (
    "mlflow", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
    "lightgbm", "sklearn.ensemble", "sklearn.linear_model", "skops.io",
)  # fmt: skip
"""What stages import when they need it."""


_FIRST = (
    "steps.probe", "steps.preflight", "steps.ledger", "sqlalchemy.dialects.sqlite", "steps.sources", "steps.recipe",
    "steps.candidates.checks", "steps.rollout.process",
)  # fmt: skip
"""What the first steps need, many at once: imported before any of them is forked."""
_TOGETHER_SECONDS = 0.02
"""How soon after a request the next one of several at once comes; an import would keep it waiting."""


def modules() -> list[str]:
    """Return what is imported ahead, in the order in which a run comes to need it."""
    stages = [f"steps.{stage.step}" for stage in STAGES]
    return [*stages[:3], *_LATER, *stages[3:]]


@dataclass
class _Parent:
    """The process that forks.  `steps` are those that run: pidfd -> (process id, socket for the exit code)."""

    requests: socket.socket
    pending: deque[str] = field(default_factory=lambda: deque(modules()))
    steps: dict[int, tuple[int, socket.socket]] = field(default_factory=dict)

    def serve(self) -> list[str] | None:
        """Import, fork and reap until nobody can ask any more; in a fork, return the words of its step."""
        gc.disable()
        for name in _FIRST:
            self._import(name)
        patience = 0.0
        while True:
            watched: list[socket.socket | int] = [self.requests, *self.steps]
            ready, _, _ = select.select(watched, [], [], patience if self.pending else None)
            patience = _TOGETHER_SECONDS if ready else 0.0
            for pidfd in [fd for fd in ready if isinstance(fd, int)]:
                self._reap(pidfd)
            if self.requests in ready:
                message, fds, _, _ = socket.recv_fds(self.requests, REQUEST, len(FDS))
                if not message:
                    return None
                if (words := self._fork(message, *fds)) is not None:
                    return words
            elif self.pending and not ready:
                self._import(self.pending.popleft())

    def _import(self, name: str) -> None:
        with contextlib.suppress(ImportError, OSError):  # the step that needs it will say what is wrong
            importlib.import_module(name)

    def _fork(self, message: bytes, log: int, guard: int, answers: int) -> list[str] | None:
        channel = socket.socket(fileno=answers)
        gc.freeze()  # what is there stays: a collection in the fork would touch, and so copy, all of it
        if pid := os.fork():
            self.steps[os.pidfd_open(pid)] = (pid, channel)
            os.close(log)
            os.close(guard)
            return None
        os.setpgid(0, 0)
        try:
            os.write(guard, f"+ {os.getpid()}\n".encode())
            channel.send(str(os.getpid()).encode())
        except BrokenPipeError:  # the runner was killed after it had asked: nobody waits for this step
            os._exit(1)
        for other in (*self.steps.values(), (0, channel), (0, self.requests)):
            other[1].close()
        with Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for fd in (log, guard, *self.steps):
            os.close(fd)
        request = json.loads(message)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        tempfile.tempdir = None  # it may have been found already, from TMPDIR
        _restore_threads()
        gc.enable()
        return list(request["words"])

    def _reap(self, pidfd: int) -> None:
        pid, channel = self.steps.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        with channel, contextlib.suppress(OSError):
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _restore_threads() -> None:
    """Give BLAS as many threads as it would have started with."""
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        named = (os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
        threads = next((int(value) for value in named if value), len(os.sched_getaffinity(0)))
        threadpool_limits(threads, user_api="blas")


def main() -> None:
    """Serve; in a fork, become the step."""
    set_defaults()
    step.share_processors()
    words = _Parent(socket.socket(fileno=int(sys.argv[1]))).serve()
    if words is not None:
        sys.argv = [step.__file__, *words]
        _leave(step.main(words))


def _leave(code: int) -> NoReturn:
    """End a fork, but leave the interpreter as it stands: taking it apart would copy most of what it shares."""
    threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
