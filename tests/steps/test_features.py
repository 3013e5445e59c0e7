"""The stage `features`: which row falls on which side, what can't be split, and when finished work is taken again."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigError, DataError
from contracts.references import DATASET_FILE, SIDES
from contracts.stages import Cache
from steps import reuse
from steps.features import features
from steps.splitting import read_recipe, read_split
from tests.steps.shop import PIPELINE, ROWS, Desk, changed, table


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


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
