"""A champion's own environment: a child process with its libraries, today's serving code, and no secrets.

uv is stood in for by a script that links today's Python, so that no test installs anything; the child itself is real.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from contracts.errors import ConfigError
from serving.model import PackagedModel
from serving.transform import rows_to_table
from steps.own_environment import child_environment, find_uv, install_environment, score_in_own_environment
from tests.model_packages import COLUMNS, ROW, package

STAND_IN = f"""#!/bin/sh
echo "$@" >> "$UV_STAND_IN_LOG"
env >> "$UV_STAND_IN_LOG"
if [ "$1" = venv ]; then
  for folder; do :; done
  mkdir -p "$folder/bin"
  printf '#!/bin/sh\\nenv > "%s.child"\\nexec {sys.executable} "$@"\\n' \\
    "$UV_STAND_IN_LOG" > "$folder/bin/python"
  chmod +x "$folder/bin/python"
elif [ -n "$UV_STAND_IN_FAILS" ]; then
  echo "resolving" >&2; echo "no version of lightgbm==0.1" >&2; exit 1
fi
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("UV_STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("RETRAIN_LEDGER", "postgresql://u:secret@h/d")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("UV_INDEX_URL", "https://u:password@index.invalid/simple")
    return tmp_path / "log"


def test_rows_are_answered_there_as_here(tmp_path: Path, log: Path):
    model, rows = package(tmp_path / "package"), rows_to_table(COLUMNS, [ROW, ROW | {"city": None}])
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("lightgbm==4.6.0\n")
    there = score_in_own_environment(requirements, model, rows, tmp_path / "work", "3.11.4")
    here = PackagedModel.load(model).predict(rows)
    np.testing.assert_array_equal(there.scores, here.scores)
    assert there.labels.tolist() == here.labels.tolist()
    said = log.read_text()
    assert "venv -q --clear --python 3.11 " in said
    assert f"-r {requirements}" in said
    assert "secret" not in said
    assert "u:password@" in said, "uv needs it"
    assert "password" not in (log.parent / "log.child").read_text()


def test_what_can_not_be_installed_is_a_clear_error(tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("UV_STAND_IN_FAILS", "1")
    with pytest.raises(ConfigError, match=r"uv pip install ended with 1: no version of lightgbm==0.1"):
        score_in_own_environment(tmp_path / "r", tmp_path / "p", rows_to_table(COLUMNS, [ROW]), tmp_path / "work")


def test_a_package_that_does_not_load_there_either_is_a_clear_error(tmp_path: Path, log: Path):
    with pytest.raises(ConfigError, match="there is no model package"):
        score_in_own_environment(tmp_path / "r", tmp_path / "p", rows_to_table(COLUMNS, [ROW]), tmp_path / "work")


def test_without_uv_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(ConfigError, match="uv was not found"):
        find_uv()


def test_uv_sees_its_settings_and_the_child_that_scores_sees_paths_only():
    given = {
        "PATH": "/bin",
        "HTTPS_PROXY": "p",
        "UV_CACHE_DIR": "c",
        "RETRAIN_STORE": "s",
        "MLFLOW_TRACKING_PASSWORD": "x",
    }
    assert install_environment(given) == {"PATH": "/bin", "HTTPS_PROXY": "p", "UV_CACHE_DIR": "c"}
    assert child_environment(given) == {"PATH": "/bin"}
