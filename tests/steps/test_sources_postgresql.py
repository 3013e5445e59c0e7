"""A query against a real PostgreSQL, where one is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.csv as pa_csv
import pytest

from contracts.errors import ConfigError, DataError
from steps.dataset import read_table
from tests.steps.ingesting import column, run_ingest, world_for

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None) or (
    Path(found).parent if (found := shutil.which("pg_ctl")) else None
)
pytestmark = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed")
ROWS = 12_000
COLUMNS = [
    column("k", "integer"),
    column("a", "string"),
    column("p", "number"),
    column("b", "boolean"),
    column("d", "date"),
    column("at", "timestamp"),
]
TABLE = f"""
CREATE TABLE t AS SELECT i AS k, CASE WHEN i % 3 = 0 THEN NULL ELSE 'v%:x' || i END AS a,
(i / 100.0)::numeric(10, 2) AS p, i % 2 = 0 AS b, date '2020-01-01' + i % 365 AS d,
timestamptz '2020-01-01 00:00:00+02' + i * interval '1 second' AS at
FROM generate_series(1, {ROWS}) i
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a server that listens on a socket in its own folder only; PostgreSQL does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="retrain-pg-"))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)

    def call(command: str, *arguments: str, **more: Any) -> None:
        assert BIN is not None
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([BIN / command, *arguments], check=True, user=user, cwd=folder, **(quiet | more))

    call("initdb", "-D", f"{folder}/data", "-U", "u", "--auth=trust", "--no-sync")
    call("pg_ctl", "-D", f"{folder}/data", "-o", f"-k {folder} -h '' -F", "-l", f"{folder}/log", "-w", "start")
    try:
        call("psql", "-h", str(folder), "-U", "u", "-d", "postgres", "-c", TABLE)
        yield f"postgresql://u:planted@/postgres?host={folder}"
    finally:
        call("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


def world(folder: Path, query: str) -> Any:
    return world_for(folder, COLUMNS, "sql:", source={"query": query, "dsn_secret": "TEST_DSN"})


def test_a_query_has_the_hash_of_its_table_as_csv(server: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEST_DSN", server)
    queried = world(tmp_path, "SELECT * FROM t WHERE a IS NULL OR a LIKE 'v%:x%' ORDER BY k")
    found = run_ingest(queried)
    table = read_table(queried, found.dataset)
    pa_csv.write_csv(table, tmp_path / "t.csv")

    assert found.rows == ROWS
    assert table["p"][:2].to_pylist() == [0.01, 0.02]
    assert table["at"][0].as_py().isoformat() == "2019-12-31T22:00:01+00:00"
    assert run_ingest(world_for(tmp_path, COLUMNS, "t.csv")).dataset_sha256 == found.dataset_sha256


@pytest.mark.parametrize(
    ("query", "database", "expected"),
    [
        ("SELECT * FROM absent ORDER BY k", "postgres", 'relation "absent" does not exist'),
        ("SELEC * FROM t ORDER BY k", "postgres", "syntax error"),
        ("SELECT * FROM t ORDER BY k", "absent", 'database "absent" does not exist'),
    ],
)
def test_a_query_that_cannot_run_is_a_config_error(
    query: str, database: str, expected: str, server: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TEST_DSN", server.replace("/postgres?", f"/{database}?"))
    with pytest.raises(ConfigError) as caught:
        run_ingest(world(tmp_path, query))
    assert expected in caught.value.message
    assert "planted" not in caught.value.message


def test_a_value_that_breaks_the_query_is_a_data_error_that_does_not_show_it(
    server: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TEST_DSN", server)
    with pytest.raises(DataError, match="a value breaks the query") as caught:
        run_ingest(world(tmp_path, "SELECT a::int FROM t WHERE a IS NOT NULL ORDER BY k"))
    assert "v%" not in caught.value.message
