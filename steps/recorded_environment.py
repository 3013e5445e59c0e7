"""The Python environment that trained a version: today's where it is the same, else made anew from the kept lock file.

Called by `steps.reproduce`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConfigError, NetworkError
from steps.own_environment import make_environment, minor
from steps.provenance import machine
from steps.recorded_code import HERE
from steps.reuse import lock_sha256

ABOUT_MACHINE = ("python", "architecture", "system", "cpu")
"""What `machine` says besides versions of libraries."""
_PIN = re.compile(r"^([\w.-]+)==([\w.!+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Environment:
    """An interpreter, and whether it is the one that runs this."""

    interpreter: str
    today: bool
    lock_sha256: str


def today_environment() -> Environment:
    """Return the environment that runs this."""
    return Environment(sys.executable, True, lock_sha256())


def recorded_environment(
    kept_sha256: str,
    lock: Path | None,
    recorded: Mapping[str, str],
    folder: Path,
    tell: Callable[[str], None] = lambda _: None,
    packages: Sequence[str] = (),
) -> Environment:
    """Return an environment with the Python and the libraries that a run recorded.

    Parameters
    ----------
    kept_sha256, lock
        Hash of the run's lock file, and the kept file itself, None when none is kept.
    recorded
        Versions as `steps.provenance.machine` says them; a library that was installed over the lock file is among them.
    folder
        Where an environment is made.
    tell
        Hears of it, because it takes longer.
    packages
        ``name==version`` of what the user's own modules need besides; today's environment has them in a folder.

    Raises
    ------
    ConfigError
        No lock file is kept where one is needed, there is no uv, no such Python or no such package.
    NetworkError
        The package index did not answer.
    """
    now = machine()
    libraries = {name: version for name, version in recorded.items() if name not in ABOUT_MACHINE}
    same = all(now.get(name) == version for name, version in libraries.items())
    if same and kept_sha256 == lock_sha256() and minor(recorded.get("python", now["python"])) == minor(now["python"]):
        return today_environment()
    if lock is None:
        raise ConfigError("the run keeps no lock file, and today's libraries are others", remedy=HERE)
    pinned = {(_plain(name), version) for name, version in _PIN.findall(lock.read_text(encoding="utf-8"))}
    over = [f"{name}=={version}" for name, version in libraries.items() if (_plain(name), version) not in pinned]
    python = recorded.get("python", "")
    tell(f"making the environment of the version's lock file{f', Python {minor(python)}' if python else ''}")
    try:
        interpreter = make_environment(lock, folder, python, [*over, *packages])
    except (ConfigError, NetworkError) as error:
        remedy = HERE if error.remedy == error.row.remedy else f"{error.remedy}; {HERE}"
        raise type(error)(f"the version's environment can't be made: {error.message}", remedy=remedy) from None
    return Environment(interpreter, False, kept_sha256)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
