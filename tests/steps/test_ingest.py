"""The stage as a whole: what it leaves, what it leaves alone, and what broken files get for an answer."""

# ruff: noqa: E501  the tables of cases read better unwrapped

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigError, DataError, StageError
from steps.dataset import read_manifest, read_table
from steps.inference import infer, sniff_csv
from tests.steps.ingesting import AS_OF, column, run_ingest, world_for

COLUMNS = [column("k", "integer"), column("a", "string")]


def test_a_dataset_is_stored_under_its_hash_and_left_alone_by_a_second_run(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('a,k\nx,1\n"",2\n,3\n')
    world = world_for(tmp_path, COLUMNS, "t.csv")

    first = run_ingest(world)
    data = Path(first.dataset.removeprefix("file://")) / "data.parquet"
    written = data.stat().st_mtime_ns
    second = run_ingest(world_for(tmp_path, COLUMNS, "t.csv"))

    assert first == second
    assert data.stat().st_mtime_ns == written
    assert read_table(world, first.dataset).to_pydict() == {"k": [1, 2, 3], "a": ["x", "", None]}
    manifest = read_manifest(world, first.dataset)
    assert (manifest.rows, manifest.as_of, manifest.sources) == (3, AS_OF, ((tmp_path / "t.csv").as_uri(),))


def test_a_run_killed_between_the_two_files_is_mended_by_the_next(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k,a\n1,x\n")
    first = run_ingest(world_for(tmp_path, COLUMNS, "t.csv"))
    (Path(first.dataset.removeprefix("file://")) / "dataset.json").unlink()
    world = world_for(tmp_path, COLUMNS, "t.csv")
    assert run_ingest(world) == first
    assert read_manifest(world, first.dataset).sha256 == first.dataset_sha256


def _parquet(table: dict[str, Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(table), sink)
    return bytes(sink.getvalue())


WHOLE = _parquet({"k": list(range(1000)), "a": ["x"] * 1000})
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "empty": ("t.csv", b"", "is empty"),
    "blank lines only": ("t.csv", b"\n\r\n\n", "is empty"),
    "header only": ("t.csv", b"k,a\n", "there is a header, and no rows"),
    "header without line end": ("t.csv", b"k,a", "there is a header, and no rows"),
    "column missing": ("t.csv", b"k,b\n1,x\n", "column a: is missing"),
    "column too much": ("t.csv", b"k,a,c\n1,x,2\n", "column c: is not in the schema"),
    "column twice": ("t.csv", b"k,a,a\n1,x,2\n", "column a: stands 2 times in the header"),
    "delimiter": ("t.csv", b"k;a\n1;x\n", "name the right delimiter: source.csv.delimiter: \";\""),
    "tabs": ("t.csv", b"k\ta\n1\tx\n", "source.csv.delimiter: \"\\t\""),
    "latin-1": ("t.csv", b"k,a\n1,x\n2,caf\xe9\n", "row 2: is not utf-8"),
    "latin-1 in the header": ("t.csv", b"k,\xe9\n1,x\n", "the header is not utf-8"),
    "utf-16": ("t.csv", "k,a\n1,x\n".encode("utf-16"), "is UTF-16, read as utf-8"),
    "NUL": ("t.csv", b"k,a\n1,x\n2,\0\n", "row 2: holds a NUL byte"),
    "a spreadsheet": ("t.csv", b"PK\x03\x04\x14\0\x06\0,a\n", "is a zip archive or spreadsheet, read as CSV"),
    "quote never closed": ("t.csv", b'k,a\n1,x\n2,"y\n3,z\n', "row 2: a quote is opened and never closed"),
    "quote inside": ("t.csv", b'k,a\n1,x\n\n2,5" pipe\n3,6" pipe\n', "row 2: a quote stands in the middle of a cell"),
    "text after a quote": ("t.csv", b'k,a\n1,"x"y\n', "row 1: a quote stands in the middle of a cell"),
    "cells too few": ("t.csv", b"k,a\n1,x\n2\n", "1 row breaks it, 50.00% of all; first row 2: '1 cells'"),
    "cells too many": ("t.csv", b"k,a\n1,x,y\n2,y\n", "first row 1: '3 cells'"),
    "a record without end": ("t.csv", b'k,a\n1,x\n2,"' + b"y" * (17 << 20), "row 2: a record is longer than 16 MiB"),
    "gzip cut off": ("t.csv.gz", gzip.compress(b"k,a\n" + os.urandom(3000).hex().encode())[:-900], "its gzip stream ends early"),
    "no gzip": ("t.csv.gz", b"\x1f\x8bxxxxxxxxxxxxxx", "its gzip stream ends early"),
    "parquet cut off": ("t.parquet", WHOLE[:-50], "is damaged, cut off or no Parquet file"),
    "parquet with a hole": ("t.parquet", WHOLE[:200] + b"\xff" * 200 + WHOLE[400:], "is damaged, cut off or no Parquet file"),
    "parquet with nested values": ("t.parquet", _parquet({"k": [1], "a": [[1]]}), "type (string): 1 row breaks it"),
}  # fmt: skip


@pytest.mark.parametrize("cause", BROKEN)
def test_a_broken_file_gets_one_clear_answer_and_leaves_nothing(cause: str, tmp_path: Path) -> None:
    name, data, expected = BROKEN[cause]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        run_ingest(world_for(tmp_path, COLUMNS, name))
    said = "\n".join([caught.value.message, *map(str, caught.value.findings), caught.value.remedy])
    assert expected in said
    assert cause in ("cells too few", "cells too many", "parquet with nested values") or name in said
    assert not (tmp_path / "home" / "store").exists()


GOOD: dict[str, tuple[bytes, dict[str, Any]]] = {
    "byte order mark": (b"\xef\xbb\xbfk,a\n1,x\n", {}),
    "CRLF": (b"k,a\r\n1,x\r\n", {}),
    "old Mac": (b"k,a\r1,x\r", {}),
    "no line end": (b"k,a\n1,x", {}),
    "blank lines": (b"\n\nk,a\n\n1,x\n\n", {}),
    "all quoted": (b'"k","a"\n"1","x"\n', {}),
    "semicolons": (b"k;a\n1;x\n", {"delimiter": ";"}),
    "single quotes": (b"k,a\n1,'x'\n", {"quote": "'"}),
    "utf-16": ("k,a\n1,x\n".encode("utf-16"), {"encoding": "utf-16"}),
    "latin-1": ("k,a\n1,x\n".encode("latin-1"), {"encoding": "latin-1"}),
}


def test_one_table_in_many_dialects_has_one_hash(tmp_path: Path) -> None:
    hashes = set()
    for number, (data, options) in enumerate(GOOD.values()):
        (tmp_path / f"{number}.csv").write_bytes(data)
        hashes.add(run_ingest(world_for(tmp_path, COLUMNS, f"{number}.csv", source={"csv": options})).dataset_sha256)
    assert len(hashes) == 1


def test_missing_markers_count_where_they_are_not_quoted(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('k,a\n?,?\n1,"?"\nNA,x\n')
    world = world_for(tmp_path, COLUMNS, "t.csv", source={"csv": {"missing": ["?", "NA"]}})
    assert read_table(world, run_ingest(world).dataset).to_pydict() == {"k": [None, 1, None], "a": [None, "?", "x"]}


def test_extra_columns_are_dropped_when_the_schema_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("c,k,a\n9,1,x\n")
    world = world_for(tmp_path, COLUMNS, "t.csv", schema={"extra_columns": "drop"})
    assert read_table(world, run_ingest(world).dataset).to_pydict() == {"k": [1], "a": ["x"]}


NOT_THERE = {
    "nothing": ("absent.csv", ConfigError, "there is no file"),
    "a folder": ("folder", ConfigError, "is a directory"),
    "no match": ("*.parquet", DataError, "no file matches"),
    "a loop": ("loop.csv", ConfigError, "is a loop of symbolic links"),
}


@pytest.mark.parametrize("cause", NOT_THERE)
def test_a_path_that_is_no_file_is_named(cause: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    uri, kind, expected = NOT_THERE[cause]
    with pytest.raises(kind) as caught:
        run_ingest(world_for(tmp_path, COLUMNS, uri))
    assert expected in caught.value.message


def test_a_file_that_may_not_be_read_is_a_config_error(tmp_path: Path) -> None:
    secret = tmp_path / "t.csv"
    secret.write_text("k,a\n1,x\n")
    secret.chmod(0)
    world = world_for(tmp_path, COLUMNS, "t.csv")
    tmp_path.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StageError) as caught:
            run_ingest(world)
    finally:
        os.seteuid(user)
    assert isinstance(caught.value, ConfigError)
    assert "may not be read" in caught.value.message


def test_a_file_that_grows_while_it_is_read_is_a_data_error(tmp_path: Path) -> None:
    from contracts.pipeline.source import CsvOptions
    from steps.table.csv_blocks import cut

    (tmp_path / "t.csv").write_text("k,a\n" + "1,x\n" * 100)
    blocks = cut(tmp_path / "t.csv", "t.csv", CsvOptions(), 64)
    next(blocks)
    with (tmp_path / "t.csv").open("a") as file:
        file.write("2,y\n")
    with pytest.raises(DataError, match=r"t\.csv changed while it was read"):
        list(blocks)


def test_inference_proposes_types_markers_values_and_identifiers(tmp_path: Path) -> None:
    lines = [
        f"id{i};{i};{i / 2};{'?' if i % 9 == 0 else i};2020-01-{i % 28 + 1:02};{'yn'[i % 2]};{str(i % 2 == 0).lower()}"
        for i in range(100)
    ]
    (tmp_path / "t.csv").write_text("key;n;x;gap;day;letter;flag\n" + "\n".join(lines) + "\n")

    options = sniff_csv(tmp_path / "t.csv")
    found = infer(tmp_path / "t.csv", options)

    assert options.delimiter == ";"
    assert (found.rows, found.missing_markers) == (100, ("?",))
    by_name = {c.name: c for c in found.columns}
    assert {n: c.type.value for n, c in by_name.items()} == {
        "key": "string", "n": "integer", "x": "number", "gap": "integer", "day": "date", "letter": "string", "flag": "boolean",
    }  # fmt: skip
    assert (by_name["gap"].nulls, by_name["gap"].minimum, by_name["gap"].maximum) == (12, 1, 98)
    assert (by_name["day"].minimum, by_name["day"].maximum, by_name["day"].distinct) == ("2020-01-01", "2020-01-28", 28)
    assert (by_name["letter"].values, by_name["flag"].values) == (("n", "y"), (False, True))
    assert [c.name for c in found.columns if c.identifier] == ["key", "n"]


def test_inference_keeps_the_types_of_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, None], "b": ["1", "2"], "c": [AS_OF, AS_OF]}), tmp_path / "t.parquet")
    found = infer(tmp_path / "t.parquet")
    assert [(c.type.value, c.nulls) for c in found.columns] == [("integer", 1), ("string", 0), ("timestamp", 0)]


def test_inference_takes_codes_with_leading_zeros_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("zip,n\n01234,0\n10000,0.5\n")
    assert [c.type.value for c in infer(tmp_path / "t.csv").columns] == ["string", "number"]


def test_inference_takes_the_type_of_nearly_all_cells_and_names_the_others(tmp_path: Path) -> None:
    cells = [str(20 + i % 50) for i in range(3000)]
    cells[4], cells[9], cells[20] = "abc", "12.5", "-"
    codes = ["01234", *(str(10_000 + i) for i in range(2999))]
    mixed = ["x" if i % 10 == 0 else "1" for i in range(3000)]
    lines = "\n".join(",".join(row) for row in zip(cells, codes, mixed, strict=True))
    (tmp_path / "t.csv").write_text(f"age,zip,mixed\n{lines}\n")

    found = infer(tmp_path / "t.csv")

    age, codes_found, mixed_found = found.columns
    assert (age.type.value, age.misfits, age.nulls, age.distinct) == ("integer", 2, 1, 50)
    assert (age.minimum, age.maximum, found.missing_markers) == (20, 69, ("-",))
    assert age.named_misfits == ((5, "abc"), (10, "12.5"))
    assert [c.type.value for c in (codes_found, mixed_found)] == ["string", "string"]
