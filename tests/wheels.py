"""Wheels made by hand, and uv told to look nowhere else: packages of a user's own without an index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from steps.own_environment import find_uv
from steps.own_packages import read_lock
from steps.reuse import LOCK_FILE


def wheel(folder: Path, name: str, version: str, files: Mapping[str, str], requires: Sequence[str] = ()) -> Path:
    """Write a pure Python wheel into a folder."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={_digest(text)},{len(text)}\n" for path, text in content.items())
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in {**content, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(zipfile.ZipInfo(member), text)  # the same bytes each time
    return path


def stand_ins(folder: Path, *names: str) -> None:
    """Write wheels of retrain's own libraries as they are locked: versions are asked for, never their content."""
    for package in read_lock(LOCK_FILE.read_text(encoding="utf-8")):
        if package.name in names:
            wheel(folder, package.name.replace("-", "_"), package.version, {})


def only_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let uv and pip take packages from a folder alone."""
    try:
        find_uv()
    except ConfigError as error:
        pytest.skip(error.message)
    own = {
        "UV_FIND_LINKS": str(folder), "UV_NO_INDEX": "1", "UV_OFFLINE": "1", "UV_CACHE_DIR": str(folder / "cache"),
        "PIP_FIND_LINKS": str(folder), "PIP_NO_INDEX": "1",
    }  # fmt: skip
    for name, value in own.items():
        monkeypatch.setenv(name, value)


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
