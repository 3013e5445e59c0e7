"""Sources that are not there, may not be read, never end, or change: paths, S3, queries, functions, moments."""

# ruff: noqa: E501  the tables read better unwrapped

from __future__ import annotations

import ctypes
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.badinput.refusals import SECRET, Case
from tests.badinput.text_cases import GOOD


def nothing(_: Path) -> None:
    """Lay out nothing."""


def folders(folder: Path) -> None:
    (folder / "a.csv").mkdir()


def a_file(folder: Path) -> None:
    (folder / "t.csv").write_bytes(GOOD)


def link(target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "t.csv").symlink_to(folder / target)


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "t.csv")


def socket_file(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("t.csv")
    finally:
        os.chdir(here)


def unreadable(what: str) -> Callable[[Path], Iterator[dict[str, str]]]:
    """Take the right to read from a file or its folder, and from root the power to read all the same."""

    def lay_out(folder: Path) -> Iterator[dict[str, str]]:
        (folder / "deep").mkdir()
        (folder / "deep" / "t.csv").write_bytes(GOOD)
        (folder / what).chmod(0)
        with without_powers():
            yield {}
        (folder / what).chmod(0o700)

    return lay_out


@contextmanager
def without_powers() -> Iterator[None]:
    """Take from this thread, when it is root's, the power to read what permissions deny (Linux's capabilities)."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    before = sets[0]
    sets[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = before
    assert libc.capset(header, sets) == 0


def database(folder: Path) -> dict[str, str]:
    with sqlite3.connect(folder / "t.db") as connection:
        connection.execute("CREATE TABLE t (k INTEGER, a TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, "x"), ("one", "y")])
    connection.close()
    return {"TEST_DSN": f"sqlite:///{folder / 't.db'}"}


def dsn(value: str) -> Callable[[Path], dict[str, str]]:
    return lambda folder: {"TEST_DSN": value.format(folder=folder)}


def no_database(folder: Path) -> dict[str, str]:
    (folder / "t.db").write_bytes(b"no database at all" * 100)
    return {"TEST_DSN": f"sqlite:///{folder / 't.db'}"}


def locked(folder: Path) -> Iterator[dict[str, str]]:
    settings = database(folder)
    holder = sqlite3.connect(folder / "t.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    yield {"TEST_DSN": settings["TEST_DSN"] + "?timeout=0.05"}
    holder.close()


def sql(name: str, data: Any, query: str, *says: str, exit_code: int = 78) -> Case:
    source = {"query": query, "dsn_secret": "TEST_DSN"}
    return Case("SQL", name, data, says, file="sql:", exit_code=exit_code, source=source)


def code(name: str, body: str, *says: str, exit_code: int = 78, uri: str = "python:rows:rows") -> Case:
    return Case("Python", name, nothing, says, file=uri, exit_code=exit_code, modules={"rows": body})


ORDERED = "SELECT k, a FROM t ORDER BY k"
PLACES = (
    Case("no file", "a name that is not there", nothing, ("there is no file", "absent.csv", "source.uri, or the name that was given in its place"), file="absent.csv", exit_code=78),
    Case("no file", "a folder that is not there", nothing, ("there is no file",), file="absent/t.csv", exit_code=78),
    Case("no file", "a file taken for a folder", a_file, ("cannot be read", "t.csv/u.csv"), file="t.csv/u.csv", exit_code=78),
    Case("no file", "a name too long", nothing, ("cannot be read", "too long"), file="x" * 300, exit_code=78),
    Case("no file", "a name with odd characters", nothing, ("there is no file", "50% of ümlaut #1 + \"more\" 'here'.csv"), file="50% of ümlaut #1 + \"more\" 'here'.csv", exit_code=78),
    Case("no file", "a zero in the name", nothing, ("NUL",), file="t\0.csv", exit_code=78),
    Case("a directory", "by its name", folders, ("is a directory", "a.csv/*.parquet"), file="a.csv", exit_code=78),
    Case("a directory", "with a slash", folders, ("is a directory",), file="a.csv/", exit_code=78),
    Case("no match", "of a pattern", nothing, ("no file matches *.parquet", "whether the data has arrived"), file="*.parquet"),
    Case("no match", "but a directory", folders, ("no file matches *.csv",), file="*.csv"),
    Case("no match", "of the day", nothing, ("no file matches dt=2026-03-01/*.csv",), file="dt={{as_of:%Y-%m-%d}}/*.csv"),
    Case("symbolic links", "a loop", link("t.csv"), ("is a loop of symbolic links",), exit_code=78),
    Case("symbolic links", "to nothing", link("gone.csv"), ("points to nothing",), exit_code=78),
    Case("symbolic links", "to nothing, by a pattern", link("gone.csv"), ("t.csv", "points to nothing"), file="*.csv", exit_code=78),
    Case("no plain file", "a pipe", pipe, ("is no plain file",), exit_code=78),
    Case("no plain file", "a socket", socket_file, ("is no plain file",), exit_code=78),
    Case("no plain file", "an endless device", nothing, ("is no plain file",), file="/dev/zero", exit_code=78),
    Case("no permission", "for the file", unreadable("deep/t.csv"), ("may not be read", "the right to read it"), file="deep/t.csv", exit_code=78),
    Case("no permission", "for its folder", unreadable("deep"), ("may not be read",), file="deep/t.csv", exit_code=78),
    Case("URI", "an unknown scheme", nothing, ("the source ftp:// is not known", "s3://"), file="ftp://host/t.csv", exit_code=78),
    Case("URI", "another machine's file", nothing, ("names the machine host",), file="file://host/t.csv", exit_code=78),
    Case("URI", "an unknown template", nothing, ("{{today}} in the source is not known",), file="{{today}}.csv", exit_code=78),
    Case("URI", "a bucket without a key", nothing, ("names no object",), file="s3://bucket", exit_code=78),
    Case("URI", "a web address without a host", nothing, ("cannot be fetched",), file="http:///t.csv", exit_code=78),
    Case("URI", "a web address with an odd port", nothing, ("cannot be fetched",), file="http://127.0.0.1:port/t.csv", exit_code=78),
    Case("URI", "an open password", nothing, ("source.uri", "holds a password", "{{secret:NAME}}"), file=f"https://ann:{SECRET}@host/t.csv", exit_code=78),
    Case("URI", "an open signature", nothing, ("source.uri", "holds a secret in X-Amz-Signature"), file=f"https://host/t.csv?X-Amz-Signature={SECRET}", exit_code=78),
    Case("URI", "a secret in the path", nothing, ("has a {{secret:...}} in its path",), file="https://host/{{secret:PLACE}}/t.csv", exit_code=78),
    Case("URI", "a secret that is not set", nothing, ("the variable ABSENT is missing",), file="https://host/t.csv?token={{secret:ABSENT}}", exit_code=78),
    Case("as_of", "no moment", a_file, ("parameter as-of", "yesterday"), as_of="yesterday", exit_code=78),
    Case("as_of", "no zone", a_file, ("parameter as-of", "timezone"), as_of="2026-03-01T12:00:00", exit_code=78),
    Case("as_of", "no such day", a_file, ("parameter as-of",), as_of="2026-02-30T12:00:00Z", exit_code=78),
    Case("as_of", "out of range in UTC", a_file, ("parameter as-of",), as_of="0001-01-01T00:00:00+10:00", exit_code=78),
    sql("no DSN", nothing, ORDERED, "the variable TEST_DSN is missing"),
    sql("no URL in the DSN", dsn(f"host=db password={SECRET}"), ORDERED, "the DSN in TEST_DSN is no URL"),
    sql("another database's DSN", dsn(f"mysql://u:{SECRET}@h/d"), ORDERED, "is for mysql"),
    sql("an odd port in the DSN", dsn(f"postgresql://u:{SECRET}@h:port/d"), ORDERED, "the DSN in TEST_DSN is no URL"),
    sql("no file behind the DSN", dsn("sqlite:///{folder}/gone.db"), ORDERED, "names no SQLite file"),
    sql("no database in the file", no_database, ORDERED, "is not a database"),
    sql("no such table", database, "SELECT k, a FROM absent ORDER BY k", "no such table: absent", "check source.query"),
    sql("no such column", database, "SELECT k, a, z FROM t ORDER BY k", "no such column: z"),
    sql("no SQL", database, "SELEKT k, a FROM t ORDER BY k", "syntax error"),
    sql("no rows asked for", database, "DELETE FROM t WHERE k = (SELECT k FROM t ORDER BY k)", "the query"),
    sql("two statements", database, f"{ORDERED}; DROP TABLE t", "one statement"),
    sql("a column twice", database, "SELECT k, k FROM t ORDER BY k", "names the column k twice"),
    sql("no rows", database, "SELECT k, a FROM t WHERE k = 7 ORDER BY k", "no rows", exit_code=65),
    sql("another column", database, "SELECT k, a AS b FROM t ORDER BY k", "column a: is missing", exit_code=65),
    sql("mixed types in a column", database, ORDERED, "column k", "type (integer)", "row 2: 'one'", exit_code=65),
    sql("a locked database", locked, ORDERED, "the database is busy", exit_code=74),
    sql("no server", dsn(f"postgresql://u:{SECRET}@127.0.0.1:9/d"), ORDERED, "no connection to the database", exit_code=75),
    sql("no ORDER BY", database, "SELECT k, a FROM t", "names no ORDER BY"),
    code("raises", f"def rows():\n    raise ValueError('{SECRET}')\n", "rows.py, line 2", "ValueError"),
    code("raises on the way", f"import pyarrow as pa\ndef rows():\n    yield pa.record_batch({{'k': [1], 'a': ['x']}})\n    1 / 0  # {SECRET}\n", "rows.py, line 4", "ZeroDivisionError"),
    code("cannot connect", f"def rows():\n    raise ConnectionRefusedError('{SECRET}')\n", "ConnectionRefusedError", exit_code=75),
    code("exits", "import sys\ndef rows():\n    sys.exit(3)\n", "SystemExit"),
    code("yields dicts", "def rows():\n    return [{'k': 1}]\n", "yields dict", "pyarrow Table", exit_code=65),
    code("yields nothing", "def rows():\n    return iter(())\n", "yields nothing", exit_code=65),
    code("returns nothing", "def rows():\n    pass\n", "yields NoneType", exit_code=65),
    code("returns a DataFrame", "import pandas\ndef rows():\n    return pandas.DataFrame({'k': [1]})\n", "yields DataFrame", exit_code=65),
    code("yields other columns later", "import pyarrow as pa\ndef rows():\n    yield pa.table({'k': [1], 'a': ['x']})\n    yield pa.table({'k': [1]})\n", "batches of different columns", exit_code=65),
    code("wants an argument", "def rows(path):\n    return path\n", "rows", "argument", "path"),
    code("is no function", "rows = 3\n", "is no function"),
    code("is not there", "other = 3\n", "rows has no rows"),
    code("is not named", "rows = 3\n", "names no function", uri="python:rows"),
    code("is in no module", "rows = 3\n", "there is no module absent", uri="python:absent:rows"),
    code("does not parse", "def rows(:\n", "importing rows failed: SyntaxError"),
    code("fails at import", f"raise RuntimeError('{SECRET}')\n", "importing rows failed: RuntimeError"),
)  # fmt: skip
