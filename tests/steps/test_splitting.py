from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.pipeline.learning import Split, TimeBounds
from contracts.pipeline.table import Column, ColumnType
from contracts.references import SplitManifest
from serving.transform import ARROW_TYPES
from steps.splitting import SplitRows, key_scheme, row_keys, seal, sides_by_hash, sides_by_time

COLUMNS = [
    Column(name="n", type="integer"), Column(name="x", type="number"), Column(name="b", type="boolean"),
    Column(name="s", type="string"), Column(name="d", type="date"), Column(name="t", type="timestamp"),
]  # fmt: skip
SCHEME = key_scheme("adult", COLUMNS)
CELLS = {
    "n": st.integers(-(2**63), 2**63 - 1),
    "x": st.floats(allow_nan=False),
    "b": st.booleans(),
    "s": st.text(max_size=5),
    "d": st.dates(),
    "t": st.datetimes(timezones=st.just(UTC)),
}
ROW = st.fixed_dictionaries({name: st.none() | cell for name, cell in CELLS.items()})
ROWS = st.lists(ROW, min_size=1, max_size=12)
SPLIT = Split(validation=0.2, test=0.3, seed=5)


def batch(rows: list[dict[str, Any]], columns: list[Column] = COLUMNS) -> Any:
    arrays = [pa.array([row[c.name] for row in rows], ARROW_TYPES[c.type]) for c in columns]
    return pa.record_batch(arrays, names=[c.name for c in columns])


def keys_of(rows: list[dict[str, Any]], columns: list[Column] = COLUMNS, name: str = "adult") -> list[bytes]:
    keys = row_keys([batch(rows, columns)], columns, key_scheme(name, columns))
    return [bytes(key).ljust(16, b"\0") for key in keys]


def sides_of(rows: list[dict[str, Any]], split: Split = SPLIT) -> list[int]:
    return sides_by_hash(row_keys([batch(rows)], COLUMNS, SCHEME), split).tolist()


def reference_key(row: dict[str, Any]) -> bytes:
    """docs/split.md, word by word, without numpy, Arrow or code of ours."""
    made_of = [
        "retrain row key 1",
        "adult",
        [["n", "integer"], ["x", "number"], ["b", "boolean"], ["s", "string"], ["d", "date"], ["t", "timestamp"]],
    ]
    scheme = hashlib.sha256(json.dumps(made_of, separators=(",", ":"), ensure_ascii=False).encode()).digest()
    content, epoch = scheme[:16], datetime(1970, 1, 1, tzinfo=UTC)
    write = {
        "n": lambda v: struct.pack("<q", v),
        "x": lambda v: struct.pack("<d", 0.0 if v == 0 else v),
        "b": lambda v: struct.pack("<q", int(v)),
        "s": lambda v: struct.pack("<q", len(v.encode())),
        "d": lambda v: struct.pack("<q", (v - date(1970, 1, 1)).days),
        "t": lambda v: struct.pack("<q", (v - epoch) // timedelta(microseconds=1)),
    }
    for name, bytes_of in write.items():
        content += bytes(9) if row[name] is None else b"\1" + bytes_of(row[name])
    content += (row["s"] or "").encode()
    return hashlib.sha256(content).digest()[:16]


def reference_side(key: bytes, split: Split) -> int:
    def mix(word: int) -> int:
        word = (word + 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        return word ^ word >> 31

    place = mix(int.from_bytes(key[:8], "little") ^ mix(split.seed % 2**64)) / 2**64
    return 2 if place < split.test else 1 if place < split.test + split.validation else 0


@settings(max_examples=50, deadline=None)
@given(ROWS, st.integers(-5, 2**70))
def test_keys_and_sides_are_those_of_the_specification(rows: list[dict[str, Any]], seed: int) -> None:
    split = Split(validation=0.2, test=0.3, seed=seed)

    assert keys_of(rows) == [reference_key(row) for row in rows]
    assert sides_of(rows, split) == [reference_side(reference_key(row), split) for row in rows]


def test_a_key_has_this_literal_value() -> None:
    row = {"n": 1, "x": -0.0, "b": True, "s": "é", "d": date(2024, 2, 29), "t": datetime(1969, 12, 31, 23, tzinfo=UTC)}

    assert keys_of([row])[0].hex() == "371cb518c2294947e1fdc2c7607845fc"
    assert keys_of([dict.fromkeys(row)])[0].hex() == "0b2301f3633a20b5e669f04396eb75bd"


@settings(max_examples=60, deadline=None)
@given(ROWS, ROWS, st.randoms(use_true_random=False), st.integers(1, 5))
def test_later_rows_other_orders_and_other_batches_move_no_row(
    rows: list[dict[str, Any]], more: list[dict[str, Any]], random: Any, size: int
) -> None:
    alone = dict(zip(keys_of(rows), sides_of(rows), strict=True))
    together = rows + more
    random.shuffle(together)
    table = pa.Table.from_batches([batch(together)])

    keys = row_keys(table.to_batches(max_chunksize=size), COLUMNS, SCHEME)
    sides = dict(zip(keys_of(together), sides_by_hash(keys, SPLIT).tolist(), strict=True))

    assert {key: sides[key] for key in alone} == alone


@settings(max_examples=60, deadline=None)
@given(ROW, ROWS, st.data())
def test_rows_of_one_declared_key_stay_together_whatever_else_they_hold(
    row: dict[str, Any], others: list[dict[str, Any]], data: Any
) -> None:
    names = data.draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, unique=True))
    declared = [c for c in COLUMNS if c.name in names]
    rows = [{**other, **{name: row[name] for name in names}} for other in others]

    keys = row_keys([batch(rows)], declared, key_scheme("adult", declared))

    assert len(set(keys.tolist())) == 1
    assert len(set(sides_by_hash(keys, SPLIT).tolist())) == 1


def test_missing_empty_zero_and_false_are_different_keys() -> None:
    base: dict[str, Any] = dict.fromkeys(CELLS)
    rows = [
        base,
        {**base, "s": ""},
        {**base, "n": 0},
        {**base, "x": 0.0},
        {**base, "b": False},
        {**base, "d": date(1970, 1, 1)},
    ]

    assert len(set(keys_of(rows))) == len(rows)


def test_minus_zero_is_zero_and_nan_is_missing() -> None:
    base: dict[str, Any] = dict.fromkeys(CELLS)
    plus, minus, nan, null = keys_of([{**base, "x": x} for x in (0.0, -0.0, float("nan"), None)])

    assert plus == minus
    assert nan == null


def test_keys_of_another_pipeline_column_or_type_have_nothing_in_common() -> None:
    def key(name: str, column: str, kind: str, value: Any) -> bytes:
        return keys_of([{column: value}], [Column(name=column, type=kind)], name)[0]

    keys = [
        key("a", "id", "integer", 1),
        key("b", "id", "integer", 1),
        key("a", "no", "integer", 1),
        key("a", "id", "number", 1.0),
    ]
    assert len(set(keys)) == len(keys)


def test_shares_are_met_on_average_for_every_class_and_another_seed_draws_anew() -> None:
    keys = row_keys([batch([{**dict.fromkeys(CELLS), "n": n} for n in range(20_000)])], COLUMNS, SCHEME)
    first, second = (sides_by_hash(keys, Split(validation=0.2, test=0.3, seed=seed)) for seed in (0, 1))

    for half in (slice(0, 10_000), slice(10_000, None)):
        shares = Counter(first[half].tolist())
        assert shares[2] / 10_000 == pytest.approx(0.3, abs=0.02)
        assert shares[1] / 10_000 == pytest.approx(0.2, abs=0.02)
    assert (first == second).mean() == pytest.approx(0.5**2 + 0.2**2 + 0.3**2, abs=0.02)


def test_time_boundaries_belong_to_the_later_side_and_follow_the_zone() -> None:
    bounds = TimeBounds(
        column="t", validation=datetime(2026, 1, 1), test=datetime(2026, 2, 1, 1, tzinfo=timezone(timedelta(hours=1)))
    )
    moments = np.array(
        ["2025-12-31T23:59:59.999999", "2026-01-01", "2026-01-31T23:59:59", "2026-02-01"], dtype="M8[us]"
    )

    assert sides_by_time(moments, bounds).tolist() == [0, 1, 1, 2]
    assert sides_by_time(moments.astype("M8[D]"), bounds).tolist() == [0, 1, 1, 2]


def test_moving_time_boundaries_forward_puts_no_learned_row_on_the_test_side() -> None:
    moments = np.arange("2026-01-01", "2026-12-31", dtype="M8[D]")
    old = sides_by_time(moments, TimeBounds(column="t", validation=datetime(2026, 5, 1), test=datetime(2026, 7, 1)))
    new = sides_by_time(moments, TimeBounds(column="t", validation=datetime(2026, 6, 1), test=datetime(2026, 8, 1)))

    assert not ((old != 2) & (new == 2)).any()


def split_rows(numbers: list[int], sides: list[int], name: str = "adult") -> SplitRows:
    columns = [Column(name="n", type=ColumnType.INTEGER)]
    scheme = key_scheme(name, columns)
    keys = row_keys([batch([{"n": n} for n in numbers], columns)], columns, scheme)
    manifest = SplitManifest(
        sha256="0" * 64,
        dataset_sha256="1" * 64,
        transform_sha256="2" * 64,
        method="random",
        seed=0,
        key_scheme=scheme,
        counts={},
    )
    sides8 = np.array(sides, dtype=np.int8)
    return SplitRows(seal(manifest, keys, sides8), keys, sides8)


def test_unseen_rows_are_test_rows_that_no_other_model_learned_from_or_was_chosen_by() -> None:
    challenger = split_rows([1, 2, 3, 4, 5], [2, 2, 2, 2, 0])
    champion = split_rows([1, 2, 3, 6], [0, 1, 2, 0])

    assert challenger.unseen_by(champion).tolist() == [False, False, True, True, False]
    assert challenger.unseen_by(champion, split_rows([4], [1])).tolist() == [False, False, True, False, False]


def test_splits_whose_keys_are_made_otherwise_share_no_unseen_row() -> None:
    assert not split_rows([1, 2], [2, 2]).unseen_by(split_rows([3], [0], name="other")).any()


def test_the_hash_of_a_split_changes_with_any_row_s_side_key_and_with_its_manifest() -> None:
    base = split_rows([1, 2], [0, 2])
    others = [split_rows([1, 2], [0, 1]), split_rows([1, 3], [0, 2]), split_rows([2, 1], [0, 2])]
    moved = seal(base.manifest.model_copy(update={"dataset_sha256": "9" * 64}), base.keys, base.sides)

    assert len({base.manifest.sha256, moved.sha256, *(o.manifest.sha256 for o in others)}) == 5
    assert base.manifest.sha256 == split_rows([1, 2], [0, 2]).manifest.sha256
