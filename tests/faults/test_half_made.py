"""A process is killed while it makes MLflow's database: the next one makes it, and nobody meets half of one."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults  # MLflow is imported twice and makes its database twice: ten seconds

CONNECTS = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from sqlalchemy.engine import Engine
from steps.mlflow_connection import mlflow_client
from tests.steps.registered import make_settings

part = sys.argv[2]

@event.listens_for(Engine, "before_cursor_execute")
def count(connection, cursor, statement, *_):
    if part and statement.lstrip().startswith(part):
        os.kill(os.getpid(), signal.SIGKILL)

client = mlflow_client(make_settings(Path(sys.argv[1])))
print(client.search_experiments()[0].name)
"""


def connect(folder: Path, *, killed_at: str = "") -> subprocess.CompletedProcess[str]:
    """Open the MLflow of a folder in another process, which is killed before the first statement that begins so."""
    command = [sys.executable, "-c", CONNECTS, str(folder), killed_at]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("statement", ["INSERT INTO _alembic_tmp", "DROP TABLE"])  # within a migration, and its end
def test_a_database_whose_making_was_killed_is_made_anew(tmp_path: Path, statement: str) -> None:
    killed = connect(tmp_path, killed_at=statement)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    again = connect(tmp_path)

    assert again.returncode == 0, again.stderr
    assert again.stdout == "Default\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.lock"]
