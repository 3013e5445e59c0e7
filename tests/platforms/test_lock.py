"""The lock files hold for every platform we name: Linux and macOS, x86-64 and arm64, each supported Python."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = ("requirements.lock", "requirements-dev.lock")
PLATFORMS = ("x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "x86_64-apple-darwin", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.12", "3.13")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_version_and_hashes(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())

    assert len(entries) > 50
    for entry in entries:
        assert re.match(r"^[a-z0-9][a-z0-9._-]*(\[[a-z0-9,-]+\])?==\S+", entry), entry.splitlines()[0]
        assert "--hash=sha256:" in entry, entry.splitlines()[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_so_that_a_mirror_serves_as_well(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text()


def test_the_development_lock_pins_what_runs_to_the_same_versions() -> None:
    runtime, development = (
        {m[1]: m[2] for m in re.finditer(r"(?m)^([a-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", (ROOT / lock).read_text())}
        for lock in LOCKS
    )
    assert {name: development.get(name) for name in runtime} == runtime


@pytest.mark.network
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_wheel_for(lock: str, platform: str, python: str, tmp_path: Path) -> None:
    uv = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    command = [uv, "pip", "install", "--dry-run", "--only-binary", ":all:", "--require-hashes", "--no-deps"]
    command += ["--python", sys.executable, "--python-platform", platform, "--python-version", python]
    done = subprocess.run([*command, "--target", str(tmp_path), "-r", str(ROOT / lock)], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
