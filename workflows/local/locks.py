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
        self._file, until = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), time.monotonic() + patience
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    self.free()
                    return False
                time.sleep(0.01)

    def free(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def is_held(self) -> bool:
        """Tell whether anybody holds it, without taking it for longer than that takes."""
        free = not self.path.exists() or self.take()
        self.free()
        return not free
