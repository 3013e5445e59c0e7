"""One table, one hash: whatever the format, compression, split or chunk size; and every cell counts."""

# ruff: noqa: E501  the tables of cases read better unwrapped

from __future__ import annotations

import gzip
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.pipeline.source import CsvOptions
from contracts.pipeline.table import Schema
from serving.transform import ARROW_TYPES
from steps.dataset import read_manifest, read_table
from steps.table.arrow_reader import ParquetFile
from steps.table.assembly import assemble
from steps.table.csv_reader import CsvFile
from tests.steps.ingesting import column, run_ingest, world_for
from tests.steps.reference_hash import reference_hash

KINDS = ("integer", "number", "boolean", "string", "date", "timestamp")
SCHEMA = Schema.model_validate(
    {"columns": [column(kind[:3], kind, **({"infinity": True} if kind == "number" else {})) for kind in KINDS]}
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
CELLS = (
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True, allow_infinity=True),
    st.booleans(),
    st.one_of(TEXT, st.sampled_from(["", ",", '"', "\n", '"",\n"', "NA", " x ", "é", "\r\n"])),
    st.dates(date(1, 1, 1), date(9999, 12, 31)),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
)
TABLES = st.lists(st.tuples(*(st.none() | cells for cells in CELLS)), min_size=1, max_size=30)


def arrow(rows: list[tuple[Any, ...]]) -> pa.Table:
    cells = zip(*rows, strict=True)
    return pa.table({kind[:3]: pa.array(list(c), ARROW_TYPES[kind]) for kind, c in zip(KINDS, cells, strict=True)})


def csv_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(table, sink)
    return bytes(sink.getvalue())


def expected(rows: list[tuple[Any, ...]]) -> str:
    cells = zip(*rows, strict=True)
    return reference_hash([(kind[:3], kind, list(c)) for kind, c in zip(KINDS, cells, strict=True)])


def hash_of(sources: list[Any], folder: Path, schema: Schema = SCHEMA) -> str:
    tasks = (task for source in sources for task in source.tasks(schema))
    return assemble(tasks, schema, folder / "out.parquet", workers=2).sha256


@settings(max_examples=30, deadline=None)
@given(rows=TABLES, block=st.integers(16, 400), batch=st.integers(1, 9), cut=st.integers(0, 30))
def test_csv_gzip_parquet_and_splits_have_the_hash_of_the_reference(
    rows: list[Any], block: int, batch: int, cut: int
) -> None:
    with TemporaryDirectory() as name:
        folder, table = Path(name), arrow(rows)
        (folder / "t.csv").write_bytes(csv_bytes(table))
        (folder / "t.csv.gz").write_bytes(gzip.compress(csv_bytes(table)))
        pq.write_table(table, folder / "t.parquet", compression="zstd", row_group_size=7)
        (folder / "1.csv").write_bytes(csv_bytes(table.slice(0, cut)))
        pq.write_table(table.slice(cut), folder / "2.parquet", compression="none")
        options = CsvOptions()
        sources: dict[str, list[Any]] = {
            "csv": [CsvFile(folder / "t.csv", "t", options, block)],
            "gzip": [CsvFile(folder / "t.csv.gz", "t", options, block)],
            "parquet": [ParquetFile(folder / "t.parquet", "t", batch)],
            "split": [CsvFile(folder / "1.csv", "1", options, block), ParquetFile(folder / "2.parquet", "2", batch)],
        }

        hashes = {how: hash_of(files, folder) for how, files in sources.items()}

        assert hashes == dict.fromkeys(sources, expected(rows))


ODD = st.sampled_from(
    ["1", "-1", "1.0", "3.50", "+2", " 4 ", "0x1F", "-0x1", "1e3", "nan", "NAN", "-inf", "1_0", "9223372036854775808", "", '""', '" "', "true", "T",
     "yes", "2020-01-01", "2020-1-1", "2020-13-01", "2020-01-01 00:00:00", "2020-01-01T10:00:00+02:00", "2020-01-01 10:00:00.1234567", "x", "1e", ".", "+nan",
     "1e999", "-0.0", ".5", "5.", "infinity", "2020-01-01T10:00Z"]
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(cells=st.lists(ODD, min_size=1, max_size=12), kind=st.sampled_from(KINDS), block=st.integers(8, 200))
def test_a_cell_is_read_alike_whatever_stands_in_its_block(cells: list[str], kind: str, block: int) -> None:
    schema = Schema.model_validate({"columns": [column("k", "integer"), column("c", kind)]})
    with TemporaryDirectory() as name:
        path = Path(name) / "t.csv"
        path.write_text("k,c\n" + "".join(f"{i},{cell}\n" for i, cell in enumerate(cells)))

        def read(size: int) -> tuple[str, int]:
            found = assemble(CsvFile(path, "t", CsvOptions(), size).tasks(schema), schema, Path(name) / "o", workers=1)
            misfits = found.tally.breaches.get(("c", "type"))
            return found.sha256, misfits.count if misfits else 0

        assert read(block) == read(1 << 20)


def test_literal_hashes_never_change() -> None:
    rows = [
        (1, -0.0, True, "a", date(2020, 2, 29), datetime(2020, 1, 1, tzinfo=UTC)),
        (None, float("nan"), None, "", None, None),
    ]
    empty_text = [
        (1, 0.0, True, "a", date(2020, 2, 29), datetime(2020, 1, 1, tzinfo=UTC)),
        (None, None, None, "", None, None),
    ]
    null_text = [(*empty_text[0],), (None, None, None, None, None, None)]

    hashes = [expected(rows), expected(empty_text), expected(null_text)]

    assert hashes[0] == hashes[1] == "49233842dfd203d4bb339c439d6881f570bcfaca92c03fce61ac3206f4e60f11"
    assert hashes[2] == "1d86b841513486c4c77bf66ce2585b1fe96e34432c47f69ab580aa56186837bc"


def test_the_shipped_data_set_has_a_literal_hash(tmp_path: Path) -> None:
    from contracts.pipeline import load_pipeline

    pipeline = load_pipeline(Path("adult.yaml"))
    assert hash_of([CsvFile(Path("data/adult.csv"), "adult", pipeline.source.csv)], tmp_path, pipeline.table) == (
        "7571d5e0d6e6fe2004df98965f7255854f04894fbfd268f1c37a37c4c08ac3ea"
    )


CHANGES = {
    "last cell": ("a,b\n1,x\n2,y\n", "a,b\n1,x\n2,z\n"),
    "row order": ("a,b\n1,x\n2,y\n", "a,b\n2,y\n1,x\n"),
    "null or empty string": ("a,b\n1,x\n2,\n", 'a,b\n1,x\n2,""\n'),
    "null or zero": ("a,b\n0,x\n", "a,b\n,x\n"),
    "a blank in text": ("a,b\n1,x\n", "a,b\n1, x\n"),
    "where text ends": ("a,b\n1,xy\n2,z\n", "a,b\n1,x\n2,yz\n"),
    "one row more": ("a,b\n1,x\n", "a,b\n1,x\n1,x\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_changes_the_hash(change: str, tmp_path: Path) -> None:
    schema = Schema.model_validate({"columns": [column("a", "integer"), column("b", "string")]})
    hashes = set()
    for number, text in enumerate(CHANGES[change]):
        (tmp_path / f"{number}.csv").write_text(text)
        hashes.add(hash_of([CsvFile(tmp_path / f"{number}.csv", "t", CsvOptions())], tmp_path, schema))
    assert len(hashes) == 2


def test_column_names_types_and_order_count() -> None:
    one = reference_hash([("a", "integer", [1]), ("b", "integer", [2])])
    assert one != reference_hash([("b", "integer", [2]), ("a", "integer", [1])])
    assert one != reference_hash(
        [("a", "integer", [1]), ("b", "timestamp", [datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=2)])]
    )


EQUAL_FORMS = {
    "narrow floats": ("number", pa.array([0.1, None], pa.float32()), pa.array([0.10000000149011612, None])),
    "narrow integers": ("integer", pa.array([1, None], pa.int8()), pa.array([1, None])),
    "whole floats as integers": ("integer", pa.array([1.0, float("nan")]), pa.array([1, None])),
    "negative zero": ("number", pa.array([-0.0, 1]), pa.array([0.0, 1])),
    "NaN": ("number", pa.array([float("nan"), 1]), pa.array([None, 1.0])),
    "dictionary": ("string", pa.array(["x", None, "x"]).dictionary_encode(), pa.array(["x", None, "x"])),
    "large text": ("string", pa.array(["x", None], pa.large_string()), pa.array(["x", None])),
    "time zone": (
        "timestamp",
        pa.array([datetime(2020, 1, 1, 12, tzinfo=UTC)]).cast(pa.timestamp("ms", "Europe/Berlin")),
        pa.array([datetime(2020, 1, 1, 12)], pa.timestamp("ns")),
    ),
    "midnights as dates": ("date", pa.array([datetime(2020, 1, 1)]), pa.array([date(2020, 1, 1)])),
}


@pytest.mark.parametrize("form", EQUAL_FORMS)
def test_equal_tables_have_one_hash(form: str, tmp_path: Path) -> None:
    kind, *tables = EQUAL_FORMS[form]
    schema = Schema.model_validate({"columns": [column("a", kind)]})
    hashes = set()
    for number, values in enumerate(tables):
        pq.write_table(pa.table({"a": values}), tmp_path / f"{number}.parquet")
        hashes.add(hash_of([ParquetFile(tmp_path / f"{number}.parquet", "t")], tmp_path, schema))
    assert len(hashes) == 1


def test_data_parquet_has_the_same_bytes_however_it_is_cut_and_can_be_hashed_again(tmp_path: Path) -> None:
    rows = "".join(f"{i % 7},{i / 3},v{i % 5}\n" for i in range(20_000))
    columns = [column("a", "integer"), column("b", "number"), column("c", "string")]
    schema = Schema.model_validate({"columns": columns})
    (tmp_path / "t.csv").write_text("a,b,c\n" + rows)
    contents = set()
    for block, workers in ((1 << 12, 1), (1 << 20, 3)):
        found = assemble(
            CsvFile(tmp_path / "t.csv", "t", CsvOptions(), block).tasks(schema), schema, tmp_path / "o.parquet", workers
        )
        contents.add(found.parquet.read_bytes())
    assert len(contents) == 1

    world = world_for(tmp_path, columns, "t.csv")
    outputs = run_ingest(world)
    again = hash_of(
        [ParquetFile(Path(outputs.dataset.removeprefix("file://")) / "data.parquet", "stored")], tmp_path, schema
    )
    assert again == outputs.dataset_sha256 == read_manifest(world, outputs.dataset).sha256
    assert read_table(world, outputs.dataset, ["c", "a"]).schema == pa.schema([("c", pa.string()), ("a", pa.int64())])
