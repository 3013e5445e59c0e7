from __future__ import annotations

import json
import time
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import DataError
from contracts.references import ColumnSpec
from serving.transform import (
    ARROW_TYPES,
    Categorical,
    DateParts,
    Dropped,
    Numeric,
    Raw,
    Recipe,
    rows_to_table,
    transform,
    unseen,
    unseen_in,
)

RECIPE = Recipe(
    steps=(
        Numeric(column="age", type="integer", fill=40.0, indicator=True),
        Numeric(column="pay", type="number"),
        Numeric(column="member", type="boolean", fill=0.0),
        Dropped(column="id", reason="identifier"),
        Categorical(column="city", type="string", categories=("Bonn", "Ulm", "Zürich"), missing=3, other=4),
        Categorical(column="rooms", type="integer", categories=("1", "2"), missing=2, other=3),
        Categorical(column="lift", type="boolean", categories=("false", "true"), missing=0, other=2),
        DateParts(
            column="since",
            type="date",
            parts=("year", "month", "day", "weekday", "epoch_days"),
            fills=(2000.0, 1.0, 1.0, 5.0, 10957.0),
            indicator=True,
        ),
        DateParts(column="seen", type="timestamp", parts=("hour",), fills=(None,)),
    )
)
TYPES = {
    "age": "integer", "pay": "number", "member": "boolean", "id": "string", "city": "string", "rooms": "integer",
    "lift": "boolean", "since": "date", "seen": "timestamp",
}  # fmt: skip
COLUMNS = tuple(ColumnSpec(name=name, type=kind, nullable=True) for name, kind in TYPES.items())
ROW: dict[str, Any] = {
    "age": 7, "pay": 1.5, "member": True, "id": "x", "city": "Ulm", "rooms": 2, "lift": True, "since": "2024-02-29",
    "seen": "2024-02-29T23:30:00-02:00",
}  # fmt: skip
HASH = "d50adb0e41dd8fc4859af0d2d898d47a4ac209fcdec5846d3db78ca2f1c865fa"
FEATURES = [7, 0, 1.5, 1, 1, 1, 1, 2024, 2, 29, 3, 19782, 0, 1]
NULLS = [40, 1, np.nan, 0, 3, 2, 0, 2000, 1, 1, 5, 10957, 1, np.nan]

CELLS = {
    "integer": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
    "number": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "string": st.sampled_from(["Bonn", "Ulm", "Zürich", "", "Kiel"]),
    "date": st.dates().map(date.isoformat),
    "timestamp": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
}
ROWS = st.lists(st.fixed_dictionaries({n: st.none() | CELLS[t] for n, t in TYPES.items()}), min_size=1, max_size=8)


def one_row(**cells: Any) -> list[float]:
    return transform(RECIPE, rows_to_table(COLUMNS, [{**ROW, **cells}]))[0].tolist()


def test_a_row_becomes_its_features_in_the_order_of_the_names() -> None:
    assert one_row() == FEATURES
    assert RECIPE.feature_names == (
        "age", "age__missing", "pay", "member", "city", "rooms", "lift", "since__year", "since__month", "since__day",
        "since__weekday", "since__epoch_days", "since__missing", "seen__hour",
    )  # fmt: skip
    assert RECIPE.categorical == (4, 5, 6)
    assert RECIPE.cardinalities == (5, 4, 3)


def test_missing_cells_take_the_fills_and_codes_of_the_recipe() -> None:
    row = transform(RECIPE, rows_to_table(COLUMNS, [dict.fromkeys(ROW)]))[0]

    np.testing.assert_array_equal(row, NULLS)


@pytest.mark.parametrize(("city", "code"), [("Bonn", 0), ("Zürich", 2), ("", 4), ("Zu\u0308rich", 4), ("bonn", 4)])
def test_a_category_is_compared_character_by_character(city: str, code: int) -> None:
    assert one_row(city=city)[4] == code


def test_dates_before_1970_have_the_right_parts() -> None:
    assert one_row(since="1969-12-31", seen="1969-12-31T23:59:59Z")[7:] == [1969, 12, 31, 2, -1, 0, 23]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 40))
def test_one_row_alone_and_the_same_row_in_a_table_have_the_same_features(
    rows: list[dict[str, Any]], times: int
) -> None:
    table = rows_to_table(COLUMNS, rows * times)  # many rows take the way through Arrow's dictionaries
    chunked = pa.concat_tables([rows_to_table(COLUMNS, rows)] * times)
    alone = np.vstack([transform(RECIPE, rows_to_table(COLUMNS, [row])) for row in rows])

    np.testing.assert_array_equal(transform(RECIPE, table), np.tile(alone, (times, 1)))
    np.testing.assert_array_equal(transform(RECIPE, chunked), np.tile(alone, (times, 1)))


def test_dictionary_encoded_text_has_the_codes_of_plain_text() -> None:
    plain = rows_to_table(COLUMNS, [{**ROW, "city": city} for city in ("Ulm", None, "Kiel", "Bonn")] * 40)
    encoded = plain.set_column(plain.schema.get_field_index("city"), "city", plain.column("city").dictionary_encode())

    np.testing.assert_array_equal(transform(RECIPE, encoded), transform(RECIPE, plain))


@settings(max_examples=30, deadline=None)
@given(ROWS)
def test_unseen_categories_are_told_alike_from_the_table_and_from_the_features(rows: list[dict[str, Any]]) -> None:
    table = rows_to_table(COLUMNS, rows)

    told = unseen(RECIPE, table)

    assert told["city"].tolist() == [row["city"] not in (None, "Bonn", "Ulm", "Zürich") for row in rows]
    assert told["rooms"].tolist() == [row["rooms"] not in (None, 1, 2) for row in rows]
    for name, rows_told in unseen_in(RECIPE, transform(RECIPE, table)).items():
        np.testing.assert_array_equal(rows_told, told[name])


def test_a_recipe_survives_json_with_its_hash() -> None:
    again = Recipe.model_validate_json(RECIPE.json_bytes())

    assert again == RECIPE
    assert again.sha256 == RECIPE.sha256 == HASH
    assert Recipe(steps=RECIPE.steps[:-1]).sha256 != HASH


def test_a_recipe_is_plain_json_with_the_kind_of_each_step() -> None:
    assert json.loads(Recipe(steps=RECIPE.steps[:1]).json_bytes()) == {
        "format": 1,
        "steps": [{"kind": "numeric", "column": "age", "type": "integer", "fill": 40.0, "indicator": True}],
    }


def test_a_table_without_a_column_or_of_another_type_is_refused() -> None:
    table = rows_to_table(COLUMNS, [ROW])

    with pytest.raises(DataError, match="column age is absent"):
        transform(RECIPE, table.drop_columns(["age"]))
    with pytest.raises(DataError, match="column city is int64, the model wants string"):
        transform(RECIPE, table.set_column(4, "city", pa.array([1])))


def test_a_dropped_column_need_not_be_there() -> None:
    assert transform(RECIPE, rows_to_table(COLUMNS, [ROW]).drop_columns(["id"]))[0].tolist() == FEATURES


def test_no_rows_make_no_features() -> None:
    assert transform(RECIPE, rows_to_table(COLUMNS, [])).shape == (0, len(FEATURES))


def test_a_recipe_that_passes_columns_through_makes_no_features() -> None:
    recipe = Recipe(steps=(Raw(column="age", type="integer"), Dropped(column="id", reason="dropped")))

    assert recipe.passthrough
    assert recipe.columns == ("age",)
    with pytest.raises(TypeError):
        transform(recipe, rows_to_table(COLUMNS, [ROW]))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("age", "SECRET"), ("age", 1.5), ("age", True), ("age", 2**63), ("age", float("inf")), ("pay", "1.0"),
        ("pay", False), ("member", 1), ("member", "true"), ("city", 4), ("city", ["Bonn"]), ("since", "29.02.2024"),
        ("since", "2023-02-29"), ("since", 20240229), ("seen", "SECRET"), ("seen", 1.0), ("pay", 10**400),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_row_and_column_and_never_repeated(column: str, value: Any) -> None:
    with pytest.raises(DataError) as caught:
        rows_to_table(COLUMNS, [ROW, {**ROW, column: value}])

    assert [f.where for f in caught.value.findings] == [f"row 2, {column}"]
    assert "SECRET" not in str(caught.value.report("predict"))


def test_absent_and_unknown_keys_are_all_named_at_once() -> None:
    row = {**ROW, "town": "Ulm"}
    del row["city"], row["age"]

    with pytest.raises(DataError) as caught:
        rows_to_table(COLUMNS, [row])

    assert [str(f).split(" (")[0] for f in caught.value.findings] == [
        "row 1, age: is absent",
        "row 1, city: is absent",
        "row 1, town: is no column of this model",
    ]


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_rows_become_the_typed_table_and_nothing_is_lost(rows: list[dict[str, Any]]) -> None:
    table = rows_to_table(COLUMNS, rows)

    assert table.schema.types == [ARROW_TYPES[c.type] for c in COLUMNS]
    for name, kind in TYPES.items():
        back = [
            v.isoformat() if v is not None and kind in ("date", "timestamp") else v for v in table[name].to_pylist()
        ]
        assert back == [row[name] for row in rows]


def test_a_whole_float_is_an_integer_nan_is_missing_and_a_time_without_offset_is_utc() -> None:
    table = rows_to_table(COLUMNS, [{**ROW, "age": 3.0, "pay": float("nan"), "seen": "2024-01-01T10:00:00"}])

    assert table["age"].to_pylist() == [3]
    assert table["pay"].to_pylist() == [None]
    assert table["seen"].to_pylist() == [datetime(2024, 1, 1, 10, tzinfo=UTC)]


def test_a_single_row_takes_well_under_a_millisecond() -> None:
    best = min(_timed() for _ in range(200))

    assert best < 0.001, f"{best * 1e6:.0f} microseconds"


def _timed() -> float:
    start = time.perf_counter()
    transform(RECIPE, rows_to_table(COLUMNS, [ROW]))
    return time.perf_counter() - start
