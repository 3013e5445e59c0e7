"""The commands of the README's table can be typed as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import EXIT_USAGE

README = Path(__file__).parents[2] / "README.md"
COMMANDS = re.findall(r"`retrain ([^`]+)`", "".join(re.findall(r"^\| (`retrain .*?) \|", README.read_text(), re.M)))
PLACEHOLDERS = {"MOMENT": "2026-11-01T00:00:00Z", "VERSION": "3", "FILE": "no.yaml", "WHY": "drift"}


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"ui"}))
def test_a_command_of_the_table_is_no_wrong_usage(command: str, tmp_path: Path) -> None:
    words = [PLACEHOLDERS.get(word, word) for word in re.sub(r" ?\[.*\]", "", command).split()]

    done = subprocess.run(
        [Path(sys.executable).with_name("retrain"), *words], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "RETRAIN_HOME": str(tmp_path / "home")},
    )  # fmt: skip

    assert done.returncode != EXIT_USAGE, done.stderr
    assert "Traceback" not in done.stderr
