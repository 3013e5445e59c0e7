"""Locks between runners on one machine: a file each, freed by the kernel when its holder dies.  Called by `runner`."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path


class Lock:
    """One `flock`: a run's own, or a mutex of the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._given_up = False

    def take(self, patience: float = 0.0) -> bool:
        """Take the lock unless somebody holds it, for longer than `patience` seconds."""
        file = self._open()
        until = time.monotonic() + patience
        while not _lock(file):
            if time.monotonic() >= until:
                os.close(file)
                return False
            time.sleep(0.01)
        self._file = file
        return True

    def wait(self, then: Callable[[], None]) -> None:
        """Take the lock as soon as it is free, without blocking the caller; call `then` once it is taken."""

        def block() -> None:
            file = self._open()
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._given_up:
                os.close(file)
                return
            self._file = file
            then()

        threading.Thread(target=block, daemon=True, name=f"lock {self.path.name}").start()

    def free(self) -> None:
        """Give the lock back, or stop waiting for it."""
        self._given_up = True
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_held(self) -> bool:
        """Tell whether anybody holds it, without taking it for longer than that takes."""
        if not self.path.exists():
            return False
        file = self._open()
        try:
            return not _lock(file)
        finally:
            os.close(file)

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
