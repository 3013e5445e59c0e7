"""Another Python environment than today's, made by uv from a lock file, and a packaged model's answers in it.

Called by `steps.judging.champion`, for a champion that does not load here, and by `steps.reproduce`.  The child process
that scores gets today's `contracts` and `serving` (which read every package of their format), the environment's
libraries, and no secrets: uv's settings and proxies, which may hold passwords of an index, reach uv alone.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import contracts
import serving
from contracts.errors import ConfigError, NetworkError
from serving.model import Predictions
from serving.score import from_table

INSTALL_SECONDS = 900
SCORE_SECONDS = 900
_INHERITED = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "SYSTEM_VERSION_COMPAT", "TMPDIR")
_INSTALL_PREFIXES = ("UV_", "PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
_NETWORK_SIGNS = (
    "error sending request", "connection refused", "connection reset", "dns error", "timed out", "unreachable",
    "http status server error", "429 too many requests", "new connection", "name resolution",
)  # fmt: skip
"""How uv and pip say that an index did not answer; an index that answers 404 lacks the package."""
_CAUSE = re.compile(r"^\s*cause: (.+?)(?:\n\s*\n|\Z)", re.MULTILINE | re.DOTALL)
_MARKERS = re.compile(r"\{[^{}]*\}")


def score_in_own_environment(
    requirements: Path, package: Path, rows: pa.Table, folder: Path, python: str = ""
) -> Predictions:
    """Answer rows with a packaged model under the libraries that it was trained with.

    Parameters
    ----------
    requirements
        The requirements kept with the model.
    package
        Its packaged model.
    rows
        Raw rows, with the columns that it reads.
    folder
        An empty place to work in; it is left behind.
    python
        Its Python version; empty: today's.

    Raises
    ------
    ConfigError, NetworkError
        As `make_environment` and `score`.
    """
    return score(make_environment(requirements, folder, python), package, rows, folder)


def make_environment(requirements: Path, folder: Path, python: str = "", pins: Sequence[str] = ()) -> str:
    """Make a virtual environment in `folder` and return the path of its interpreter.

    Parameters
    ----------
    requirements
        A requirements or lock file.
    python
        A Python version; empty: today's.  Not to the patch: wheels do not depend on it, and not every machine has
        every one.
    pins
        ``name==version`` to install over it, without what they depend on.

    Raises
    ------
    ConfigError
        There is no uv, no such Python, or no such package.
    NetworkError
        The index did not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    uv, installing, venv = find_uv(), install_environment(os.environ), folder / "venv"
    run([uv, "venv", "-q", "--clear", "--python", minor(python or platform.python_version()), str(venv)], installing)
    interpreter = str(venv / "bin" / "python")
    install = [uv, "pip", "install", "-q", "--python", interpreter]
    run([*install, "-r", str(requirements)], installing)
    if pins:
        run([*install, "--no-deps", *pins], installing)
    return interpreter


def score(interpreter: str, package: Path, rows: pa.Table, folder: Path) -> Predictions:
    """Answer rows with a packaged model in a child process of another environment's interpreter.

    Raises
    ------
    ConfigError
        When the model does not load or answer there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code, given, answered = (folder / name for name in ("code", "rows.parquet", "answers.parquet"))
    for module in (contracts, serving):
        # Copied rather than put on the path: what lies beside them may be today's libraries.
        source = Path(next(iter(module.__path__)))
        shutil.copytree(source, code / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    pq.write_table(rows, given)
    command = [interpreter, "-m", "serving.score", "--package", str(package), "--rows", str(given)]
    run([*command, "--out", str(answered)], child_environment(os.environ), SCORE_SECONDS, code)
    return from_table(pq.read_table(answered))


def last_line(output: str) -> str:
    """Return the last line of what a process that failed wrote, which is where most of them say why."""
    return next((line.strip()[:300] for line in reversed(output.splitlines()) if line.strip()), "it says nothing")


def minor(python: str) -> str:
    """Return a Python version without its patch: ``3.11.4`` -> ``3.11``."""
    return ".".join(python.split(".")[:2])


def find_uv() -> str:
    """Return the path of uv.

    Raises
    ------
    ConfigError
        When there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    brought = Path(sys.prefix).parent / ".uv" / "bin" / "uv"
    for found in (shutil.which("uv"), str(beside), str(brought)):
        if found and os.access(found, os.X_OK):
            return found
    raise ConfigError("uv was not found, which installs packages", remedy="install uv, or `make setup`")


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the child that scores may see: paths and language; no settings and no credentials."""
    return {name: value for name, value in variables.items() if name in _INHERITED}


def install_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what uv may see: also its settings and proxies, with the credentials of an index; none of ours."""
    own = {name: value for name, value in variables.items() if name.startswith(_INSTALL_PREFIXES)}
    return child_environment(variables) | own


def run(
    command: Sequence[str], environment: dict[str, str], seconds: int = INSTALL_SECONDS, folder: Path | None = None
) -> None:
    """Run uv, or an environment's interpreter; raises as `make_environment` where it does not succeed."""
    what = f"{Path(command[0]).name} {' '.join(command[1:3])}"
    try:
        done: Any = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{what} took longer than {seconds} s") from None
    if done.returncode:
        message = f"{what} ended with {done.returncode}: {_reason(done.stderr)}"
        if {"venv", "pip"} & set(command[1:3]) and any(sign in done.stderr.lower() for sign in _NETWORK_SIGNS):
            raise NetworkError(f"the package index did not answer: {message}")
        raise ConfigError(message)


def _reason(output: str) -> str:
    """Return what uv gives as the cause, without the markers in it; else the last line."""
    cause = _CAUSE.search(output)
    return " ".join(_MARKERS.sub("", cause[1]).split())[:500] if cause else last_line(output)
