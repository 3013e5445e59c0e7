"""Every kind of source, against real servers on this machine, and the error classes of what goes wrong there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigError, DataError, NetworkError, StageError, StorageError
from serving.user_code import pack
from steps.dataset import read_manifest, read_table
from steps.sources import probe
from steps.sources.uris import fill, kind, path_of, shown
from tests.loopback import Handler, s3_server, serving
from tests.steps.ingesting import AS_OF, column, run_ingest, world_for

COLUMNS = [column("k", "integer"), column("a", "string")]


def rows_of(world: Any, **inputs: Any) -> list[int]:
    return list(read_table(world, run_ingest(world, **inputs).dataset)["k"].to_pylist())


def test_templates_are_filled_in_utc() -> None:
    moment = datetime.fromisoformat("2026-03-01T00:30:00+02:00")
    assert fill("dt={{as_of:%Y-%m-%d}}/{{ as_of:%H }}", moment) == "dt=2026-02-28/22"
    with pytest.raises(ConfigError, match="is not known"):
        fill("{{today}}", moment)


def test_paths_start_at_source_base_and_are_refused_without_one() -> None:
    assert path_of("data/a.csv", "/base") == Path("/base/data/a.csv")
    assert path_of("file:///a%20b/c?.csv", "") == Path("/a b/c?.csv")
    with pytest.raises(ConfigError, match="no source_base"):
        path_of("data/a.csv", "")
    with pytest.raises(ConfigError, match="names the machine"):
        path_of("file://host/a.csv", "")
    with pytest.raises(ConfigError, match="ftp:// is not known"):
        kind("ftp://host/a.csv")


def test_what_is_shown_of_a_uri_holds_no_secret() -> None:
    assert shown("https://me:pass@host:8443/a.csv?X-Amz-Signature=abc#x") == "https://host:8443/a.csv"


def test_several_files_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        (tmp_path / f"part-{number}.csv").write_text(f"k,a\n{number},x\n")
    assert rows_of(world_for(tmp_path, COLUMNS, "part-*.csv")) == [10, 2, 9], "a glob is sorted by name"
    assert rows_of(world_for(tmp_path, COLUMNS, ["part-9.csv", (tmp_path / "part-2.csv").as_uri()])) == [9, 2]
    assert rows_of(world_for(tmp_path, COLUMNS, "part-9.csv"), source="part-2.csv") == [2]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


def test_s3_globs_with_dates_come_from_the_endpoint(s3: str, tmp_path: Path) -> None:
    keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "s3_endpoint": s3}
    world = world_for(tmp_path, COLUMNS, "s3://bucket/dt={{as_of:%Y-%m-%d}}/*.parquet", **keys)
    world.storage._s3().create_bucket(Bucket="bucket")
    for number, key in enumerate(
        [
            "dt=2026-03-01/b.parquet",
            "dt=2026-03-01/a 1%.parquet",
            "dt=2026-03-02/c.parquet",
            "dt=2026-03-01/deep/d.parquet",
        ]
    ):
        pq.write_table(pa.table({"k": [number], "a": ["x"]}), tmp_path / "t.parquet")
        world.storage._s3().upload_file(str(tmp_path / "t.parquet"), "bucket", key)

    assert rows_of(world) == [1, 0]
    assert rows_of(world, source="s3://bucket/dt=2026-03-01/**/*.parquet") == [1, 0, 3]
    assert not list(probe("", "", world=world))
    with pytest.raises(ConfigError, match="there is no object"):
        run_ingest(world, source="s3://bucket/absent.csv")
    with pytest.raises(ConfigError, match="404 NoSuchBucket"):
        run_ingest(world, source="s3://nowhere/*.csv")
    with pytest.raises(DataError, match="no object matches"):
        run_ingest(world, source="s3://bucket/absent/*.csv")
    with pytest.raises(NetworkError):
        run_ingest(world_for(tmp_path, COLUMNS, "s3://bucket/a.csv", **(keys | {"s3_endpoint": "http://127.0.0.1:9"})))


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    class Files(Handler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].strip("/")
            body = b"k,a\n1,x\n"
            self.send_response(int(name) if name.isdigit() else 200)
            self.send_header("Content-Length", str(len(body) + (10 if name == "short" else 0)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Files) as port:
        yield f"http://user:{{{{secret:TEST_WORD}}}}@127.0.0.1:{port}"


def test_http_files_are_fetched_and_their_credentials_not_kept(
    http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_WORD", "hidden")
    world = world_for(tmp_path, COLUMNS, f"{http}/t.csv?token={{{{secret:TEST_WORD}}}}")
    outputs = run_ingest(world)
    assert outputs.rows == 1
    assert read_manifest(world, outputs.dataset).sources == (http.replace("user:{{secret:TEST_WORD}}@", "") + "/t.csv",)
    assert b"hidden" not in world.storage.read(outputs.report)


@pytest.mark.parametrize(
    ("path", "expected"),
    [("404", ConfigError), ("403", ConfigError), ("429", NetworkError), ("503", NetworkError), ("short", NetworkError)],
)
def test_http_answers_have_their_error_class(
    path: str, expected: type[StageError], http: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_WORD", "hidden")
    with pytest.raises(expected) as caught:
        run_ingest(world_for(tmp_path, COLUMNS, f"{http}/{path}?token={{{{secret:TEST_WORD}}}}"))
    assert "hidden" not in caught.value.message


def test_a_refused_http_connection_is_a_network_error(tmp_path: Path) -> None:
    with pytest.raises(NetworkError):
        run_ingest(world_for(tmp_path, COLUMNS, "http://127.0.0.1:9/t.csv"))


def sqlite(folder: Path) -> str:
    with sqlite3.connect(folder / "t.db") as connection:
        connection.execute("CREATE TABLE t (k INTEGER, a TEXT, at TEXT)")
        connection.executemany(
            "INSERT INTO t VALUES (?, ?, ?)",
            [(n, None if n == 2 else f"a{n}", f"2026-0{n}-01 10:00") for n in (3, 1, 2)],
        )
    connection.close()
    return f"sqlite:///{folder / 't.db'}"


def sql(query: str) -> dict[str, str]:
    return {"query": query, "dsn_secret": "TEST_DSN"}


def test_a_query_streams_from_sqlite_and_has_the_hash_of_the_same_csv(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEST_DSN", sqlite(tmp_path))
    columns = [*COLUMNS, column("at", "timestamp")]
    (tmp_path / "t.csv").write_text("k,a,at\n1,a1,2026-01-01 10:00\n2,,2026-02-01 10:00\n")
    query = sql("SELECT k, a, at FROM t WHERE at < '{{as_of:%Y-%m-%d}} 09:00:00' ORDER BY k")
    found = run_ingest(world_for(tmp_path, columns, "sql:", source=query))
    assert found.dataset_sha256 == run_ingest(world_for(tmp_path, columns, "t.csv")).dataset_sha256


@pytest.mark.parametrize(("dsn", "query", "expected"), [
    (None, "SELECT k, a FROM t ORDER BY k", "the variable TEST_DSN is missing"),
    ("sqlite:////nowhere/secret.db", "SELECT k, a FROM t ORDER BY k", "names no SQLite file"),
    ("mysql://u:secret@h/d", "SELECT k, a FROM t ORDER BY k", "is for mysql"),
    ("not a secret url", "SELECT k, a FROM t ORDER BY k", "is no URL"),
    ("", "SELECT k, a FROM absent ORDER BY k", "no such table: absent"),
    ("", "SELECT k, k FROM t ORDER BY k", "names the column k twice"),
])  # fmt: skip
def test_a_query_that_cannot_run_is_a_config_error_without_the_dsn(
    dsn: str | None, query: str, expected: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.delenv("TEST_DSN", raising=False)
    if dsn is not None:
        monkeypatch.setenv("TEST_DSN", dsn or sqlite(tmp_path))
    with pytest.raises(ConfigError) as caught:
        run_ingest(world_for(tmp_path, COLUMNS, "sql:", source=sql(query)))
    assert expected in caught.value.message
    assert "secret" not in caught.value.message


def test_a_locked_database_is_a_storage_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEST_DSN", sqlite(tmp_path) + "?timeout=0.1")
    holder = sqlite3.connect(tmp_path / "t.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StorageError):
            run_ingest(world_for(tmp_path, COLUMNS, "sql:", source=sql("SELECT k, a FROM t ORDER BY k")))
    finally:
        holder.close()


def test_a_refused_postgresql_is_a_network_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TEST_DSN", "postgresql://u:secret@127.0.0.1:9/d")
    with pytest.raises(NetworkError) as caught:
        run_ingest(world_for(tmp_path, COLUMNS, "sql:", source=sql("SELECT k, a FROM t ORDER BY k")))
    assert "secret" not in caught.value.message


FUNCTIONS = """
import pyarrow as pa
def batches(as_of):
    for n in (1, 2):
        yield pa.record_batch({"a": [str(as_of.year)], "k": [n]})
def table():
    return pa.table({"k": [5.0, None], "a": ["x", "y"]})
def wrong():
    return [{"k": 1}]
def nothing():
    return iter(())
"""


def coded(folder: Path, uri: str) -> tuple[Any, str]:
    (folder / "rows.py").write_text(FUNCTIONS)
    world = world_for(folder, COLUMNS, uri)
    return world, world.storage.write(world.storage.uri("code", "c.zip"), pack(folder, ["rows"]))


@pytest.mark.parametrize(("function", "expected"), [("batches", [1, 2]), ("table", [5, None])])
def test_a_python_function_yields_arrow(function: str, expected: list[Any], tmp_path: Path) -> None:
    world, code = coded(tmp_path, f"python:rows:{function}")
    assert rows_of(world, code=code) == expected


@pytest.mark.parametrize(("function", "kind", "expected"), [
    ("rows:wrong", DataError, "yields dict"),
    ("rows:nothing", DataError, "yields nothing"),
    ("rows:absent", ConfigError, "has no absent"),
    ("rows", ConfigError, "names no function"),
    ("other:f", ConfigError, "cannot import other"),
])  # fmt: skip
def test_a_python_function_that_does_not_fit_is_named(
    function: str, kind: type[StageError], expected: str, tmp_path: Path
) -> None:
    world, code = coded(tmp_path, f"python:{function}")
    with pytest.raises(kind) as caught:
        run_ingest(world, code=code)
    assert expected in caught.value.message


def test_probe_reads_no_rows_and_names_what_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("")
    assert list(probe("", AS_OF.isoformat(), world=world_for(tmp_path, COLUMNS, "t.csv"))) == []
    assert list(probe("", "not a date", world=world_for(tmp_path, COLUMNS, "t.csv"))) == []
    found = list(probe("", "", world=world_for(tmp_path, COLUMNS, ["a.csv", "*.csv", "b-*.csv"])))
    assert [f.what.split(" ")[:3] for f in found] == [["there", "is", "no"], ["no", "file", "matches"]]
