from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigError, DataError
from contracts.pipeline import Pipeline
from contracts.references import DATASET_FILE, DATASET_MANIFEST, SIDES, DatasetManifest
from contracts.settings import Settings
from contracts.stages import Cache, Features
from serving.transform import Categorical, DateParts, Numeric, transform
from steps import reuse
from steps.dataset import arrow_schema, dataset_uri
from steps.features import features
from steps.recipe import policy_findings
from steps.splitting import read_recipe, read_split
from steps.world import World

ROWS = 400
PIPELINE: dict[str, Any] = {
    "apiVersion": "retrain/v1",
    "name": "shop",
    "source": {"uri": "shop.csv"},
    "schema": {
        "columns": [
            {"name": "id", "type": "integer"},
            {"name": "age", "type": "integer"},
            {"name": "pay", "type": "number"},
            {"name": "member", "type": "boolean"},
            {"name": "city", "type": "string"},
            {"name": "since", "type": "date"},
            {"name": "seen", "type": "timestamp"},
            {"name": "weight", "type": "number"},
            {"name": "bought", "type": "string"},
        ]
    },
    "target": {"column": "bought", "task": "binary", "positive": "yes"},
    "split": {"method": "random", "validation": 0.2, "test": 0.2, "seed": 3, "key": ["id"]},
    "training": {
        "metric": "roc_auc",
        "sample_weight": "weight",
        "candidates": [{"name": "linear", "estimator": "linear"}],
    },
    "gates": {"default": {"validation": {"thresholds": [{"metric": "roc_auc", "min": 0.5}]}}},
}


def table(rows: int = ROWS) -> dict[str, list[Any]]:
    dice = np.random.default_rng(1)
    return {
        "id": list(range(rows)),
        "age": [None if n % 7 == 0 else n % 50 for n in range(rows)],
        "pay": [n / 2 for n in range(rows)],
        "member": [n % 3 == 0 for n in range(rows)],
        "city": [["Bonn", "Ulm", "Kiel", None][n % 4] for n in range(rows)],
        "since": [date(2020, 1, 1) + timedelta(days=n) for n in range(rows)],
        "seen": [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=n) for n in range(rows)],
        "weight": [1.0] * rows,
        "bought": dice.choice(["yes", "no"], rows).tolist(),
    }


def changed(path: str = "", value: Any = None) -> dict[str, Any]:
    """Return the pipeline file with one dotted key set."""
    data = copy.deepcopy(PIPELINE)
    *parents, last = path.split(".")
    at = data
    for key in parents:
        at = at.setdefault(key, {})
    if path:
        at[last] = value
    return data


class Desk:
    """A store in a folder, and the stage run on tables put into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def world(self, data: dict[str, Any]) -> World:
        settings = Settings(store=(self.folder / "store").as_uri(), tracking_uri="sqlite://")
        return World(settings=settings, pipeline=Pipeline.model_validate(data), pipeline_path=self.folder / "shop.yaml")

    def put(self, world: World, cells: dict[str, list[Any]], sha256: str = "a" * 64) -> Features.Inputs:
        typed = pa.table(cells, schema=arrow_schema(world.pipeline.table))
        uri = dataset_uri(world, sha256)
        pq.write_table(typed, world.scratch / DATASET_FILE, row_group_size=100)
        world.storage.upload(world.scratch / DATASET_FILE, f"{uri}/{DATASET_FILE}")
        manifest = DatasetManifest(
            sha256=sha256,
            schema_sha256="b" * 64,
            rows=typed.num_rows,
            columns=(),
            sources=(),
            as_of=datetime(2026, 1, 1, tzinfo=UTC),
        )
        world.storage.write(f"{uri}/{DATASET_MANIFEST}", manifest.model_dump_json().encode())
        return Features.Inputs(dataset=uri, dataset_sha256=sha256)

    def run(
        self, cells: dict[str, list[Any]], data: dict[str, Any] = PIPELINE, sha256: str = "a" * 64
    ) -> tuple[World, Features.Outputs]:
        world = self.world(data)
        return world, features(self.put(world, cells, sha256), world=world)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def steps_of(desk: Desk, cells: dict[str, list[Any]], data: dict[str, Any] = PIPELINE) -> dict[str, Any]:
    world, outputs = desk.run(cells, data)
    return {step.column: step for step in read_recipe(world, outputs.split).steps}


def test_every_row_gets_a_side_and_the_manifest_says_what_was_decided(desk: Desk) -> None:
    world, outputs = desk.run(table())

    split = read_split(world, outputs.split)
    assert split.manifest.sha256 == outputs.split_sha256
    assert split.manifest.transform_sha256 == outputs.transform_sha256 == read_recipe(world, outputs.split).sha256
    assert len(split.keys) == len(split.sides) == len(set(split.keys.tolist())) == ROWS
    assert split.manifest.counts == {side: int(split.mask(side).sum()) for side in SIDES}
    bought = np.array(table()["bought"])
    for side in SIDES:
        assert split.manifest.class_shares[side]["yes"] == pytest.approx((bought[split.mask(side)] == "yes").mean())
    assert not outputs.reused
    assert outputs.summary.startswith("train 2")


def test_same_data_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    def files(name: str) -> dict[str, bytes]:
        desk = Desk(tmp_path / name)
        _, outputs = desk.run(table())
        folder = tmp_path / name / "store" / "splits" / outputs.split_sha256
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first, second = files("first"), files("second")

    assert sorted(first) == ["recipe.json", "rows.parquet", "split.json"]
    assert first == second


def test_a_run_killed_before_the_manifest_was_written_is_made_whole_by_the_next(desk: Desk) -> None:
    world, outputs = desk.run(table())
    folder = desk.folder / "store" / "splits" / outputs.split_sha256
    (folder / "split.json").unlink()

    _, again = desk.run(table())

    assert (again.split, again.reused) == (outputs.split, False)
    assert read_split(world, again.split).manifest.sha256 == outputs.split_sha256


def test_cells_on_the_validation_and_test_side_do_not_change_the_recipe(desk: Desk) -> None:
    world, before = desk.run(table())
    away = ~read_split(world, before.split).mask("train")
    cells = table()
    for name, other in {
        "age": 10_000, "pay": -1e9, "member": None, "city": "Mars", "since": date(1900, 1, 1),
        "seen": datetime(1900, 1, 1, tzinfo=UTC),
    }.items():  # fmt: skip
        cells[name] = [other if gone else cell for cell, gone in zip(cells[name], away, strict=True)]

    _, after = desk.run(cells, sha256="c" * 64)

    assert after.transform_sha256 == before.transform_sha256
    assert after.split != before.split


def test_rows_of_a_larger_data_set_that_were_there_before_keep_their_side(desk: Desk) -> None:
    world, before = desk.run(table())
    _, after = desk.run({name: cells[::-1] for name, cells in table(ROWS + 200).items()}, sha256="c" * 64)

    old, new = read_split(world, before.split), read_split(world, after.split)
    sides = dict(zip(new.keys.tolist(), new.sides.tolist(), strict=True))
    assert [sides[key] for key in old.keys.tolist()] == old.sides.tolist()
    assert old.manifest.key_scheme == new.manifest.key_scheme


def test_no_group_is_on_two_sides(desk: Desk) -> None:
    data = changed("split", {"method": "group", "group": "city"})
    cells = table()
    cells["city"] = [f"city {n % 40}" for n in range(ROWS)]

    world, outputs = desk.run(cells, data)

    sides = read_split(world, outputs.split).sides
    assert all(len({sides[n] for n in range(ROWS) if n % 40 == group}) == 1 for group in range(40))


def test_time_boundaries_of_the_file_cut_the_rows(desk: Desk) -> None:
    data = changed(
        "split", {"method": "time", "time": {"column": "since", "validation": "2020-09-01", "test": "2020-11-01"}}
    )

    world, outputs = desk.run(table(), data)

    sides = read_split(world, outputs.split).sides.tolist()
    assert sides == [0 if d < date(2020, 9, 1) else 1 if d < date(2020, 11, 1) else 2 for d in table()["since"]]


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


def by_time(validation: str, test: str) -> dict[str, Any]:
    return {"split": {"method": "time", "time": {"column": "since", "validation": validation, "test": test}}}


NO_FEATURE = {"features": {"columns": [{"column": name, "drop": True} for name in list(table())[:-2]]}}


@pytest.mark.parametrize(
    ("cells", "sections", "message"),
    [
        (
            {"bought": [None, *["yes", "no", "no"] * 133]},
            {},
            "target column bought is null in 1 of 400 rows, first in row 1",
        ),
        (
            {"city": [*["Bonn"] * 7, None, *["Ulm"] * 392]},
            {"split": {"method": "group", "group": "city"}},
            "split.group column city is null in 1 of 400 rows, first in row 8",
        ),
        ({"since": [None] * ROWS}, by_time("2020-02-01", "2020-03-01"), "split.time column since is null"),
        ({}, by_time("2030-02-01", "2030-03-01"), "no row falls on the side validation and test"),
        ({}, NO_FEATURE, "no column is left"),
    ],
)
def test_what_can_not_be_split_is_an_error_of_the_data(
    desk: Desk, cells: dict[str, list[Any]], sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        desk.run({**table(), **cells}, {**PIPELINE, **sections})
    assert not (desk.folder / "store" / "splits").exists()


@pytest.mark.parametrize(
    ("bought", "split", "what"),
    [
        (["no"] * ROWS, {}, "no row has the positive class"),
        (["yes"] * ROWS, {}, "the side train holds one class only"),
        (["yes", "no", "maybe", "no"] * 100, {}, "a binary target has 3 classes"),
        (["yes", "yes", *["no"] * 398], {"method": "stratified"}, "class yes (2 rows) has no row on the side"),
    ],
)
def test_classes_that_can_not_be_learned_or_judged_are_an_error_of_the_data(
    desk: Desk, bought: list[str], split: dict[str, Any], what: str
) -> None:
    with pytest.raises(DataError) as caught:
        desk.run({**table(), "bought": bought}, changed("split", {"seed": 8, **split}))

    assert any(what in str(finding) for finding in caught.value.findings)


def test_a_class_without_a_training_row_is_an_error_of_the_data(desk: Desk) -> None:
    world, outputs = desk.run(table())
    row = int(np.flatnonzero(read_split(world, outputs.split).mask("test"))[0])
    bought = [
        "maybe" if n == row else cell for n, cell in enumerate(table()["bought"])
    ]  # the key is the id: no row moves

    with pytest.raises(DataError) as caught:
        desk.run({**table(), "bought": bought}, changed("target", {"column": "bought", "task": "multiclass"}), "c" * 64)

    assert [finding.what for finding in caught.value.findings] == ["class maybe (1 rows) has no row on the side train"]


def test_the_classes_of_a_sensitive_target_are_named_nowhere(desk: Desk) -> None:
    data = changed()
    data["schema"]["columns"][-1]["sensitive"] = True

    world, outputs = desk.run(table(), data)
    with pytest.raises(DataError) as caught:
        desk.run({**table(), "bought": ["yes", "no", "maybe", "no"] * 100}, data, sha256="c" * 64)

    assert set(read_split(world, outputs.split).manifest.class_shares["test"]) == {"#1", "#2"}
    assert "maybe" not in caught.value.report("features").model_dump_json()


def test_no_cell_stands_in_the_rows_or_the_manifest_of_a_split(desk: Desk) -> None:
    data = changed("split.key", ["city"])
    cells = {**table(), "city": [f"PLANTED-{n}" for n in range(ROWS)]}

    _, outputs = desk.run(cells, data)

    folder = desk.folder / "store" / "splits" / outputs.split_sha256
    assert not any(b"PLANTED" in path.read_bytes() for path in folder.iterdir())


def test_a_regression_has_no_classes(desk: Desk) -> None:
    data = changed("target", {"column": "pay", "task": "regression"})
    data["training"]["metric"] = data["gates"]["default"]["validation"]["thresholds"][0]["metric"] = "rmse"

    world, outputs = desk.run(table(), data)

    assert read_split(world, outputs.split).manifest.class_shares == {}


def test_the_same_reading_is_done_once_and_said_to_be_reused(desk: Desk) -> None:
    _, first = desk.run(table())
    _, second = desk.run(table())

    assert second.reused
    assert second.summary == f"reused: {first.summary}"
    assert (second.split, second.transform_sha256) == (first.split, first.transform_sha256)


def test_reuse_is_refused_on_request_and_gives_the_same_split(desk: Desk) -> None:
    _, first = desk.run(table())
    world = desk.world(PIPELINE)

    inputs = desk.put(world, table()).model_copy(update={"cache": Cache.REFUSE})

    assert features(inputs, world=world) == first


@pytest.mark.parametrize(
    ("path", "value", "reused"),
    [
        ("split.seed", 4, False),
        ("features.indicator", False, False),
        ("training.sample_weight", "pay", False),
        ("training.seed", 9, True),
        ("description", "another text", True),
    ],
)
def test_what_the_stage_reads_decides_whether_it_runs_again(desk: Desk, path: str, value: Any, reused: bool) -> None:
    desk.run(table())
    _, again = desk.run(table(), changed(path, value))

    assert again.reused is reused


def test_another_dataset_another_library_or_other_code_runs_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.run(table())

    assert not desk.run(table(), sha256="c" * 64)[1].reused
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "version", lambda name: "99")
        assert not desk.run(table())[1].reused
    with monkeypatch.context() as patch:
        patch.setattr(reuse, "_source_sha256", lambda name: "other code")
        assert not desk.run(table())[1].reused
    assert desk.run(table())[1].reused


def test_a_remembered_split_that_is_gone_or_garbled_does_not_count(desk: Desk) -> None:
    _, first = desk.run(table())
    (desk.folder / "store" / "splits" / first.split_sha256 / "rows.parquet").unlink()
    assert not desk.run(table())[1].reused

    for entry in (desk.folder / "store" / "cache" / "features").iterdir():
        entry.write_text(json.dumps({"outputs": {"split": "x"}}))
    assert not desk.run(table())[1].reused


def test_a_dataset_other_than_its_hash_says_is_refused(desk: Desk) -> None:
    world = desk.world(PIPELINE)
    inputs = desk.put(world, table())

    with pytest.raises(ConfigError, match="is not the one asked for"):
        features(inputs.model_copy(update={"dataset_sha256": "d" * 64}), world=world)


def test_a_truncated_dataset_is_an_error_of_the_data(desk: Desk) -> None:
    world = desk.world(PIPELINE)
    inputs = desk.put(world, table())
    path = desk.folder / "store" / "datasets" / ("a" * 64) / DATASET_FILE
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(DataError, match="is damaged"):
        features(inputs, world=world)


def test_a_split_whose_sides_were_touched_is_refused(desk: Desk) -> None:
    world, outputs = desk.run(table())
    path = desk.folder / "store" / "splits" / outputs.split_sha256 / "rows.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(1, "side", pa.array([0] * ROWS, pa.int8())), path)

    with pytest.raises(ConfigError, match="not what its hash says"):
        read_split(world, outputs.split)
