"""Sees to it that no step and no secret outlives the runner, however the runner ends.  Called by `pods`.

One small shell process holds the reading end of a pipe.  A step says its own process id into the pipe before it becomes
the step's program (`wrap`), the runner takes the id back once the step has ended, and when the writing ends are all
closed (the runner is gone), the guard kills the process groups that are left and removes the volumes.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SHELL = "/bin/sh"
PROC = Path("/proc")  # where there is none, psutil is asked
_GUARD = """
trap '' INT TERM HUP QUIT
live=' '
while read -r sign pid; do
  case $sign in
    +) live="$live$pid " ;;
    -) case $live in *" $pid "*) live="${live%% "$pid" *} ${live#* "$pid" }" ;; esac ;;
  esac
done
for pid in $live; do kill -s KILL -- "-$pid"; done
exec rm -rf -- "$1"
"""
# Standard input is the pipe's writing end until the program takes over: nothing is left open, and no race is lost.
_STEP = 'echo "+ $$" >&0; exec "$@" </dev/null'


class Guard:
    """The guard of one runner.  `stdin` is what a step is started with as standard input."""

    def __init__(self, volumes: str) -> None:
        self._volumes = volumes
        self._reading, self.stdin = os.pipe()
        self._process = self._spawn()

    @staticmethod
    def wrap(command: Sequence[str]) -> list[str]:
        """Return the command that reports to the guard and then becomes `command`."""
        return [_SHELL, "-c", _STEP, "step", *command]

    def ended(self, pid: int) -> None:
        """Take back a step that ended, before its process id can be given to another process."""
        os.write(self.stdin, f"- {pid}\n".encode())

    def revive(self, live: Sequence[int]) -> None:
        """Start the guard again if it was killed; `live` are the steps that run."""
        if self._process.poll() is not None:
            self._process = self._spawn()
            os.write(self.stdin, "".join(f"+ {pid}\n" for pid in live).encode())

    def close(self) -> None:
        """End the guard, and with it whatever still runs."""
        os.close(self.stdin)
        os.close(self._reading)
        self._process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [_SHELL, "-c", _GUARD, "guard", self._volumes], stdin=self._reading, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",  # a session: no Ctrl-C of a terminal reaches it
        )  # fmt: skip


def process_start(pid: int) -> str:
    """Return when a process started, in a form that no later process with its id shares; empty when it is gone."""
    try:
        stat = (PROC / str(pid) / "stat").read_bytes()
        return f"{_boot(PROC)}/{stat.rpartition(b')')[2].split()[19].decode()}"
    except (FileNotFoundError, ProcessLookupError):
        if (PROC / "self/stat").exists():
            return ""
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


@cache
def _boot(proc: Path) -> str:
    return (proc / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
