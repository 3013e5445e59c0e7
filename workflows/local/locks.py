"""Locks between runners on one machine: a file each, freed by the kernel when its holder dies.  Called by `runner`."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path


class Lock:
    """One `flock`: a run's own, or a mutex of the manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self, patience: float = 0.0) -> bool:
        """Take the lock unless somebody holds it for longer than `patience` seconds."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file, until = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:
                    os.close(file)
                    return False
                time.sleep(0.01)
            else:
                self._file = file
                return True

    def free(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_held(self) -> bool:
        """Tell whether anybody holds it, without taking it for longer than that takes."""
        if not self.path.exists():
            return False
        free = self.take()
        self.free()
        return not free
