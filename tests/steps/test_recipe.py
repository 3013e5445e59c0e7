"""What becomes of each column: how missing cells are filled, categories coded, dates taken apart, columns left out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from contracts.errors import ConfigError
from contracts.pipeline import Pipeline
from serving.transform import Categorical, DateParts, Numeric, transform
from steps.dataset import arrow_schema
from steps.recipe import policy_findings
from steps.splitting import read_recipe, read_split
from tests.steps.shop import PIPELINE, ROWS, Desk, changed, table


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def steps_of(desk: Desk, cells: dict[str, list[Any]], data: dict[str, Any] = PIPELINE) -> dict[str, Any]:
    world, outputs = desk.run(cells, data)
    return {step.column: step for step in read_recipe(world, outputs.split).steps}


def test_numbers_are_filled_by_the_training_rows_and_marked_where_they_were_missing(desk: Desk) -> None:
    world, outputs = desk.run(table())
    train = read_split(world, outputs.split).mask("train")
    ages = [age for age, kept in zip(table()["age"], train, strict=True) if kept and age is not None]

    steps = {step.column: step for step in read_recipe(world, outputs.split).steps}

    assert steps["age"] == Numeric(column="age", type="integer", fill=float(np.median(ages)), indicator=True)
    assert steps["member"] == Numeric(column="member", type="boolean", fill=0.0)
    assert "weight" not in steps
    assert "bought" not in steps


@pytest.mark.parametrize(
    ("policy", "step"),
    [
        ({"missing": "constant", "fill": -1}, Numeric(column="age", type="integer", fill=-1.0, indicator=True)),
        ({"missing": "none"}, Numeric(column="age", type="integer")),
        ({"missing": "none", "indicator": True}, Numeric(column="age", type="integer", indicator=True)),
        ({"missing": "constant", "fill": 0, "indicator": False}, Numeric(column="age", type="integer", fill=0.0)),
    ],
)
def test_a_column_s_policy_goes_before_the_defaults(desk: Desk, policy: dict[str, Any], step: Numeric) -> None:
    assert steps_of(desk, table(), changed("features.columns", [{"column": "age", **policy}]))["age"] == step


def test_the_mean_leaves_infinities_out(desk: Desk) -> None:
    cells = table()
    cells["pay"] = [float("inf") if n % 9 == 0 else 3.0 if n % 2 else 1.0 for n in range(ROWS)]

    fill = steps_of(desk, cells, changed("features.numeric_missing", "mean"))["pay"].fill

    assert 1.5 < fill < 2.5


def test_text_becomes_codes_of_its_categories_by_name(desk: Desk) -> None:
    expected = Categorical(column="city", type="string", categories=("Bonn", "Kiel", "Ulm"), missing=3, other=4)

    assert steps_of(desk, table())["city"] == expected


def test_a_constant_for_missing_categories_is_a_category_itself(desk: Desk) -> None:
    data = changed("features.columns", [{"column": "city", "missing": "constant", "fill": "Ulm"}])

    assert steps_of(desk, table(), data)["city"] == Categorical(
        column="city", type="string", categories=("Bonn", "Kiel", "Ulm"), missing=2, other=3
    )


def test_integers_and_booleans_declared_categorical_become_codes(desk: Desk) -> None:
    data = changed(
        "features.columns",
        [{"column": "age", "categorical": True, "max_categories": 3}, {"column": "member", "categorical": True}],
    )
    cells = table()
    cells["age"] = [n % 2 if n % 9 else 100 + n % 5 for n in range(ROWS)]

    steps = steps_of(desk, cells, data)

    assert len(steps["age"].categories) == 3
    assert {"0", "1"} < set(steps["age"].categories)
    assert steps["member"].categories == ("false", "true")


def test_rare_categories_share_a_code(desk: Desk) -> None:
    cells = table()
    cells["city"] = ["Bonn" if n % 2 else f"village {n}" for n in range(ROWS)]

    world, outputs = desk.run(cells)

    recipe = read_recipe(world, outputs.split)
    step = next(s for s in recipe.steps if s.column == "city")
    assert (step.categories, step.cardinality) == (("Bonn",), 3)
    codes = transform(recipe, pa.table(cells, schema=arrow_schema(world.pipeline.table)))[:, recipe.categorical[0]]
    assert codes.tolist() == [0.0 if n % 2 else 2.0 for n in range(ROWS)]


def test_five_thousand_categories_are_kept_when_the_file_asks_for_them(desk: Desk) -> None:
    rows = 15_000
    cells = table(rows)
    cells["city"] = [f"city {n % 5000}" for n in range(rows)]

    kept = steps_of(desk, cells, changed("features", {"max_categories": 5000, "min_category_rows": 1}))[
        "city"
    ].categories
    few = steps_of(desk, cells, changed("features", {"max_categories": 100}))["city"].categories

    assert 4500 < len(kept) <= 5000
    assert len(few) == 100


def test_dates_become_the_parts_that_differ(desk: Desk) -> None:
    data = changed("features.dates", ["year", "month", "day", "weekday", "hour", "epoch_days"])
    cells = table()
    cells["since"] = [date(2024, 1 + n % 12, 5) for n in range(ROWS)]

    steps = steps_of(desk, cells, data)

    assert steps["since"].parts == ("month", "weekday", "epoch_days")
    assert steps["seen"].parts == ("day", "weekday", "hour", "epoch_days")
    assert isinstance(steps["seen"], DateParts)
    assert not steps["seen"].indicator


def test_a_missing_date_can_stand_for_a_day_of_the_file(desk: Desk) -> None:
    data = changed(
        "features",
        {"dates": ["epoch_days"], "columns": [{"column": "since", "missing": "constant", "fill": "1970-01-11"}]},
    )
    cells = table()
    cells["since"] = [None if n % 5 == 0 else day for n, day in enumerate(cells["since"])]

    step = steps_of(desk, cells, data)["since"]

    assert (step.fills, step.indicator) == ((10.0,), True)


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("age", lambda n: 5, "constant"),
        ("city", lambda n: "Bonn", "constant"),
        ("since", lambda n: date(2024, 1, 1), "constant"),
        ("age", lambda n: None, "every training cell is missing"),
        ("city", lambda n: None, "every training cell is missing"),
        ("seen", lambda n: None, "every training cell is missing"),
        ("city", lambda n: f"order {n}", "identifier"),
        ("id", lambda n: n, "identifier"),
    ],
)
def test_columns_that_say_nothing_are_no_features_and_the_split_says_why(
    desk: Desk, column: str, cell: Callable[[int], Any], reason: str
) -> None:
    world, outputs = desk.run({**table(), column: [cell(n) for n in range(ROWS)]})

    assert read_recipe(world, outputs.split).dropped[column].startswith(reason)
    assert any(
        note.startswith(f"{column} is no feature: {reason}") for note in read_split(world, outputs.split).manifest.notes
    )
    assert column in outputs.summary


def test_constants_and_identifiers_stay_when_the_file_says_so(desk: Desk) -> None:
    data = changed("features", {"drop_constant": False, "drop_identifiers": False})
    cells = {**table(), "age": [5] * ROWS, "city": [f"order {n}" for n in range(ROWS)]}

    assert not any(step.kind == "dropped" for step in steps_of(desk, cells, data).values())


def test_a_column_with_one_value_and_gaps_is_no_constant(desk: Desk) -> None:
    cells = {**table(), "age": [5 if n % 2 else None for n in range(ROWS)]}

    assert steps_of(desk, cells)["age"] == Numeric(column="age", type="integer", fill=5.0, indicator=True)


def test_passthrough_hands_every_column_on_but_those_dropped_by_the_file(desk: Desk) -> None:
    data = changed("features", {"passthrough": True, "columns": [{"column": "id", "drop": True}]})
    data["training"]["candidates"] = [{"name": "own", "estimator": "my_model:make"}]

    world, outputs = desk.run({**table(), "age": [5] * ROWS}, data)

    recipe = read_recipe(world, outputs.split)
    assert recipe.passthrough
    assert recipe.columns == ("age", "pay", "member", "city", "since", "seen")
    assert set(recipe.dropped) == {"id"}


@pytest.mark.parametrize(
    ("policy", "what"),
    [
        ({"column": "city", "missing": "mean"}, "does not fit categories"),
        ({"column": "city", "categorical": False}, "only be categorical or dropped"),
        ({"column": "pay", "categorical": True}, "does not fit a number column"),
        ({"column": "pay", "max_categories": 5}, "is for categorical columns"),
        ({"column": "pay", "missing": "constant"}, "`fill` belongs to"),
        ({"column": "pay", "fill": 1.0}, "`fill` belongs to"),
        ({"column": "pay", "missing": "constant", "fill": "one"}, "no value of a number column"),
        ({"column": "since", "missing": "constant", "fill": "soon"}, "no value of a date column"),
        ({"column": "city", "missing": "constant", "fill": 1}, "no value of a string column"),
        ({"column": "city", "indicator": True}, "indicator does not fit"),
        ({"column": "bought", "drop": True}, "never a feature"),
    ],
)
def test_a_policy_that_does_not_fit_its_column_is_a_finding(desk: Desk, policy: dict[str, Any], what: str) -> None:
    data = changed("features.columns", [policy])

    findings = policy_findings(Pipeline.model_validate(data))

    assert len(findings) == 1
    assert what in str(findings[0])
    assert policy["column"] in findings[0].where
    with pytest.raises(ConfigError):
        desk.run(table(), data)
