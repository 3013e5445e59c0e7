"""Where a model comes from: the code and its commit, the environment, the machine.  Called by `train`."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from contracts.settings import Settings

HOME = Path(__file__).resolve().parent.parent
CODE = ("contracts", "serving", "steps", "workflows", "pyproject.toml", "requirements.lock")
"""What a dirty tree's diff shows: code, never a data file that lies in the same repository."""
LARGEST_DIFF = 1024 * 1024
_DIFF = ("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
"""Whatever a person's git is configured to, `git apply` can read it again."""
_SERVING = ("mlflow", "numpy", "pandas", "pyarrow", "pydantic", "threadpoolctl")
_FORMATS = {"skops": ("scikit-learn", "scipy", "skops"), "lightgbm": ("lightgbm",), "xgboost": ("xgboost",)}
_TRAINING = (*_SERVING, "lightgbm", "scikit-learn", "scipy", "skops", "xgboost")


@dataclass(frozen=True)
class CodeState:
    """One working tree: its commit, and how it differs from it."""

    commit: str = ""
    """``-dirty`` is appended when the tree differs; empty outside of git."""
    diff: bytes = b""


def retrain_version() -> str:
    """Return retrain's own version."""
    try:
        return version("retrain")
    except PackageNotFoundError:
        return "unknown"


def retrain_code(settings: Settings) -> CodeState:
    """Return the commit that the settings name (in an image), else what git says of the files that run."""
    if settings.code_commit:
        return CodeState(settings.code_commit)
    return git_state(HOME, Path(__file__).resolve(), CODE)


def git_state(folder: Path, tracked: Path, paths: tuple[str, ...] = (".",)) -> CodeState:
    """Return commit and diff of the repository around `folder`, if it is `tracked`'s: else none.

    Parameters
    ----------
    paths
        What counts as the code, relative to `folder`.
    """
    if _git(folder, "ls-files", "--error-unmatch", str(tracked)) is None:
        return CodeState()
    commit = (_git(folder, "rev-parse", "HEAD") or b"").decode().strip()
    there = [path for path in paths if (folder / path).exists()]
    changes = _git(folder, "status", "--porcelain", "--", *there) or b""
    if not commit or not changes.strip():
        return CodeState(commit)
    diff = _git(folder, *_DIFF, "HEAD", "--", *there) or b""
    return CodeState(f"{commit}-dirty", (changes + b"\n" + diff)[:LARGEST_DIFF])


def requirements(estimator: str) -> list[str]:
    """Return what loading a package of that format needs, pinned to the versions here."""
    return [f"{name}=={found}" for name, found in _versions((*_SERVING, *_FORMATS[estimator])).items()]


def machine() -> dict[str, str]:
    """Return what the last bits of a training may depend on: versions, architecture, CPU model."""
    found = {"python": platform.python_version(), "architecture": platform.machine(), "system": platform.system()}
    return {**found, "cpu": cpu_model(), **_versions(_TRAINING)}


def cpu_model() -> str:
    """Return the CPU's name, as far as the system tells it."""
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def threads(settings: Settings) -> int:
    """Return the threads that a training may use: the setting, else all that this process was given."""
    if settings.threads:
        return settings.threads
    from joblib import cpu_count  # knows of CPU affinity and of a container's limits

    return int(cpu_count())


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> bytes | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False, timeout=30, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=10, text=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
