"""The packages that a user's modules need beside retrain's own: resolved once, locked, and made importable.

`retrain run` and `submit` resolve what the pipeline file pins, so that retrain's own libraries keep their versions.
The lock is what is left besides those that the smallest image has, the server's; a copy of it lies in the folder that
the setting `packages` names, beside the packages that are not there anyway.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contracts.base import Contract
from contracts.references import PACKAGES_FILE
from contracts.settings import Settings
from steps.reuse import LOCK_FILE

FOLDER = "packages"
"""In the desk's home: a folder a lock, and `locks`, what was resolved before."""
SERVING_LOCK = LOCK_FILE.parent / "images" / "serving" / "requirements.lock"
_REQUIREMENT = re.compile(r"^([A-Za-z0-9][\w.-]*)==([\w.!+-]+)(?:\s*;\s*([^\\]+?))?\s*(?:\\)?$")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")
_NAME = re.compile(r"[-_.]+")


class OwnPackage(Contract):
    """One locked package."""

    name: str
    version: str
    hashes: tuple[str, ...]
    """Of each file that the index has of this version, ``sha256:...``."""
    marker: str = ""

    @property
    def pin(self) -> str:
        """Name and version, as a requirement."""
        return f"{self.name}=={self.version}"

    def wanted(self, environment: Mapping[str, str] | None = None) -> bool:
        """Whether an environment wants it, by default this one."""
        from packaging.markers import Marker

        return not self.marker or Marker(self.marker).evaluate(dict(environment) if environment else None)


def resolve(pins: Sequence[str], python: str, home: Path) -> str:
    """Return a lock of pinned packages and of what they depend on besides the server's libraries, for all platforms.

    Retrain's own libraries are held at their locked versions.  What was resolved before from the same is taken again,
    without the index.

    Parameters
    ----------
    python
        The oldest Python that it is to fit, ``3.11``.
    home
        The desk's home.

    Raises
    ------
    ConfigError
        The packages do not fit together or beside retrain's, one has no wheel, or there is no uv.
    NetworkError
        The index did not answer.
    """
    from steps.own_environment import find_uv, install_environment, run  # with what reads tables; every stage has this

    asked = json.dumps([sorted(pins), python, hashlib.sha256(LOCK_FILE.read_bytes()).hexdigest()])
    kept = home / FOLDER / "locks" / f"{hashlib.sha256(asked.encode()).hexdigest()}.lock"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        wanted, part = kept.with_suffix(f".{os.getpid()}.in"), kept.with_suffix(f".{os.getpid()}.part")
        wanted.write_text("".join(f"{pin}\n" for pin in pins), encoding="utf-8")
        command = [
            find_uv(), "pip", "compile", "-q", "--universal", "--generate-hashes", "--no-header", "--no-annotate",
            "--only-binary", ":all:", "--python-version", python, "-c", str(LOCK_FILE), str(wanted), "-o", str(part),
        ]  # fmt: skip
        try:
            run(command, install_environment(os.environ))
            part.replace(kept)
        finally:
            wanted.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
    return without(kept.read_text(encoding="utf-8"), SERVING_LOCK.read_text(encoding="utf-8"))


def without(lock: str, base: str) -> str:
    """Return what of a lock is in none of the lines of another: what has to be installed over it."""
    there = {_plain(match[1]) for line in base.splitlines() if (match := _REQUIREMENT.match(line))}
    kept: list[str] = []
    keep = False
    for line in lock.splitlines(keepends=True):
        if match := _REQUIREMENT.match(line.rstrip("\n")):
            keep = _plain(match[1]) not in there
        if keep:
            kept.append(line)
    return "".join(kept)


def read_lock(lock: str) -> tuple[OwnPackage, ...]:
    """Return the packages of a lock that uv wrote."""
    found: list[OwnPackage] = []
    for line in lock.splitlines():
        if match := _REQUIREMENT.match(line):
            found.append(OwnPackage(name=match[1], version=match[2], hashes=(), marker=match[3] or ""))
        elif found and (hashes := _HASH.findall(line)):
            found[-1] = found[-1].model_copy(update={"hashes": (*found[-1].hashes, *hashes)})
    return tuple(found)


def lock_sha256(lock: str) -> str:
    """Return the hash of a lock, empty for an empty one."""
    return hashlib.sha256(lock.encode()).hexdigest() if lock else ""


def install(lock: str, home: Path) -> Path:
    """Return the folder in which the packages of a lock lie at the desk, installed by uv unless they are there.

    Raises
    ------
    ConfigError
        One has no wheel for this machine, or there is no uv.
    NetworkError
        The index did not answer.
    """
    from steps.own_environment import find_uv, install_environment, run

    folder = home / FOLDER / lock_sha256(lock)
    if (folder / PACKAGES_FILE).is_file():
        return folder
    part = folder.with_suffix(f".{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        (part / PACKAGES_FILE).write_text(lock, encoding="utf-8")
        if own := without(lock, LOCK_FILE.read_text(encoding="utf-8")):
            wanted = part / "wanted.txt"
            wanted.write_text(own, encoding="utf-8")
            command = [
                find_uv(), "pip", "install", "-q", "--python", sys.executable, "--target", str(part), "--no-deps",
                "--only-binary", ":all:", "--require-hashes", "-r", str(wanted),
            ]  # fmt: skip
            run(command, install_environment(os.environ))
            wanted.unlink()
        try:
            part.rename(folder)
        except OSError:
            if not (folder / PACKAGES_FILE).is_file():  # else another run was faster
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def activate(folder: str) -> None:
    """Make the packages of a folder importable in this process, after retrain's own libraries."""
    if folder and folder not in sys.path:
        sys.path.append(folder)
        importlib.invalidate_caches()


def current(settings: Settings) -> str:
    """Return the lock of the packages that this process has, empty without any."""
    file = Path(settings.packages) / PACKAGES_FILE
    return file.read_text(encoding="utf-8") if settings.packages and file.is_file() else ""


def bring(settings: Settings, lock: str) -> str:
    """Return the folder of the packages that a kept model needs; empty when it needs none.

    Raises
    ------
    ConfigError, NetworkError
        They are not here, and `install` says why they can't be brought.
    """
    if not lock:
        return ""
    if lock == current(settings):
        return settings.packages
    return str(install(lock, Path(settings.packages).parent.parent))


def _plain(name: str) -> str:
    return _NAME.sub("-", name).lower()
