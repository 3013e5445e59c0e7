"""Score rows with a champion that does not load in today's environment, in one rebuilt from its own lock file.

Called by `steps.champion`.  uv makes the environment in the step's scratch folder; the child process gets today's
`contracts` and `serving` (which read every package of their format), the champion's libraries, and no secrets: uv's
settings and proxies, which may hold passwords of an index, reach uv alone.
"""

from __future__ import annotations

import os
import platform
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
from contracts.errors import ConfigError
from serving.model import Predictions
from serving.score import from_table

INSTALL_SECONDS = 900
SCORE_SECONDS = 900
_INHERITED = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "SYSTEM_VERSION_COMPAT", "TMPDIR")
_INSTALL_PREFIXES = ("UV_", "PIP_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


def score_in_own_environment(
    requirements: Path, package: Path, rows: pa.Table, folder: Path, python: str = ""
) -> Predictions:
    """Answer rows with a packaged model under the libraries that it was trained with.

    Parameters
    ----------
    requirements
        The lock file kept with the champion's run.
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
    ConfigError
        When the environment can't be made, or the model does not load or answer there either.
    """
    # Not to the patch: wheels do not depend on it, and not every machine has every one.
    python = ".".join((python or platform.python_version()).split(".")[:2])
    folder.mkdir(parents=True, exist_ok=True)
    uv, installing = find_uv(), install_environment(os.environ)
    venv, code, given, answered = (folder / name for name in ("venv", "code", "rows.parquet", "answers.parquet"))
    interpreter = str(venv / "bin" / "python")
    _run([uv, "venv", "-q", "--clear", "--python", python, str(venv)], installing, INSTALL_SECONDS)
    install = [uv, "pip", "install", "-q", "--python", interpreter, "-r", str(requirements)]
    _run(install, installing, INSTALL_SECONDS)
    for module in (contracts, serving):
        # Copied rather than put on the path: what lies beside them may be today's libraries.
        source = Path(next(iter(module.__path__)))
        shutil.copytree(source, code / source.name, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    pq.write_table(rows, given)
    command = [interpreter, "-m", "serving.score", "--package", str(package), "--rows", str(given)]
    _run([*command, "--out", str(answered)], child_environment(os.environ) | {"PYTHONPATH": str(code)}, SCORE_SECONDS)
    return from_table(pq.read_table(answered))


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
    raise ConfigError("uv was not found, which rebuilds a champion's environment", remedy="install uv, or `make setup`")


def child_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what the child that scores may see: paths and language; no settings and no credentials."""
    return {name: value for name, value in variables.items() if name in _INHERITED}


def install_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what uv may see: also its settings and proxies, with the credentials of an index; none of ours."""
    own = {name: value for name, value in variables.items() if name.startswith(_INSTALL_PREFIXES)}
    return child_environment(variables) | own


def _run(command: Sequence[str], environment: dict[str, str], seconds: int) -> None:
    what = f"{Path(command[0]).name} {' '.join(command[1:3])}"
    try:
        done: Any = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{what} took longer than {seconds} s") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ConfigError(f"{what} ended with {done.returncode}: {lines[-1][:300] if lines else 'it says nothing'}")
