"""Every rule: what breaks it, at which level, with which rows, in one answer."""

# ruff: noqa: E501  the tables of cases read better unwrapped

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError, DataError
from tests.steps.ingesting import column, run_ingest, world_for

KEY = column("k", "integer")


def answer(folder: Path, text: str, columns: list[dict[str, Any]], **more: Any) -> DataError:
    (folder / "t.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        run_ingest(world_for(folder, columns, "t.csv", **more))
    assert not (folder / "home" / "store").exists(), "an error must leave nothing in the store"
    return caught.value


BREAKS: dict[str, tuple[dict[str, Any], str, str]] = {
    "type": (column("a", "integer"), "1\nx\n3\n", "column a: type (integer): 1 row breaks it, 33.33% of all; first row 2: 'x'"),
    "type of a date": (column("a", "date"), "2020-02-30\n", "first row 1: '2020-02-30'"),
    "nullable": (column("a", "string", nullable=False), "x\n\"\"\n,\n", "column a: nullable (no nulls): 1 row breaks it"),
    "min": (column("a", "integer", min=2), "1\n2\n", "column a: min (at least 2): 1 row breaks it, 50.00% of all; first row 1: 1"),
    "max": (column("a", "number", max=1.5), "1.5\n1.6\n", "max (at most 1.5): 1 row breaks it, 50.00% of all; first row 2: 1.6"),
    "a date's min": (column("a", "date", min="2020-01-01"), "2019-12-31\n", "min (at least 2020-01-01)"),
    "a time's max": (column("a", "timestamp", max="2020-01-01"), "2020-01-01 00:00:01\n", "max (at most 2020-01-01)"),
    "allowed": (column("a", "string", allowed=["x", "y"]), "x\nz\n", "allowed (one of x, y): 1 row breaks it, 50.00% of all; first row 2: 'z'"),
    "pattern": (column("a", "string", pattern="[a-z]+"), "ab\nab1\n", "pattern (matches [a-z]+): 1 row breaks it"),
    "unique": (column("a", "string", unique=True), "x\ny\nx\nx\n", "unique: 2 rows break it, 50.00% of all; first row 3: 'x'; row 4: 'x'"),
    "max_missing": (column("a", "string", max_missing=0.2), "x\n,\n", "max_missing (share of nulls at most 0.2): 1 row breaks it"),
    "infinity": (column("a", "number"), "1\ninf\n", "infinity (finite (or infinity: true)): 1 row breaks it"),
}  # fmt: skip


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_an_error_that_names_column_rule_count_and_rows(rule: str, tmp_path: Path) -> None:
    spec, cells, expected = BREAKS[rule]
    text = "k,a\n" + "".join(f"1,{cell}\n" if cell != "," else "1,\n" for cell in cells.splitlines())
    error = answer(tmp_path, text, [KEY, spec])
    assert [expected in str(finding) for finding in error.findings] == [True], error.findings


def test_all_violations_are_in_one_answer(tmp_path: Path) -> None:
    columns = [column("k", "integer", min=0), column("a", "integer"), column("b", "string", nullable=False)]
    error = answer(
        tmp_path, "k,a,b\n-1,x,\n2,3\n3,4,5\n", columns, schema={"rows": {"min": 10}, "unique": [["k", "b"]]}
    )
    found = [(finding.where, finding.what.split(" ")[0].rstrip(":")) for finding in error.findings]
    assert found == [
        ("table", "cells"),
        ("table", "rows.min"),
        ("column k", "min"),
        ("column a", "type"),
        ("column b", "nullable"),
    ]


def test_rows_count_on_over_files_and_past_ragged_ones(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("k\n1\n2\n")
    (tmp_path / "2.csv").write_text('k\n"3",4\n\nx\n')
    with pytest.raises(DataError) as caught:
        run_ingest(world_for(tmp_path, [KEY], "*.csv"))
    assert [f.what.partition("first ")[2] for f in caught.value.findings] == ["row 3: '2 cells'", "row 5: 'x'"]


def test_warnings_reach_outputs_summary_manifest_and_report(tmp_path: Path) -> None:
    spec = column("a", "integer", type_level="warn", max={"value": 5, "level": "warn"})
    (tmp_path / "t.csv").write_text("k,a\n1,x\n2,7\n3,1\n")
    world = world_for(tmp_path, [KEY, spec], "t.csv")

    outputs = run_ingest(world)

    assert outputs.warnings == 2
    assert "warnings on 2 rules: a type, a max" in outputs.summary
    report = json.loads(world.storage.read(outputs.report))
    assert [(v["rule"], v["count"], v["examples"]) for v in report["violations"]] == [
        ("type", 1, [{"row": 1, "value": "x"}]),
        ("max", 1, [{"row": 2, "value": 7}]),
    ]
    assert json.loads(world.storage.read(f"{outputs.dataset}/dataset.json"))["warnings"] == report["violations"]


def test_a_tolerated_share_is_reported_and_neither_error_nor_warning(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k,a\n" + "1,9\n" + "1,1\n" * 9)
    world = world_for(tmp_path, [KEY, column("a", "integer", max={"value": 5, "tolerate": 0.1})], "t.csv")
    outputs = run_ingest(world)
    assert outputs.warnings == 0
    assert json.loads(world.storage.read(outputs.report))["violations"][0]["level"] == "tolerated"


def test_a_warned_misfit_still_breaks_nullable(tmp_path: Path) -> None:
    error = answer(tmp_path, "k,a\n1,x\n", [KEY, column("a", "integer", type_level="warn", nullable=False)])
    assert "nullable" in error.findings[0].what


@pytest.mark.parametrize("spec", [
    column("a", "string", sensitive=True, allowed=["ok"]),
    column("a", "string", sensitive=True, pattern="ok"),
    column("a", "string", sensitive=True, unique=True),
    column("a", "integer", sensitive=True),
])  # fmt: skip
@pytest.mark.parametrize("level", ["error", "warn"])
def test_cells_of_sensitive_columns_are_masked_everywhere(
    spec: dict[str, Any], level: str, tmp_path: Path, caplog: Any
) -> None:
    spec = dict(spec)
    for rule in ("allowed", "pattern", "unique"):
        if rule in spec:
            spec[rule] = {"value": spec[rule], "level": level}
    (tmp_path / "t.csv").write_text("k,a\n1,SECRET77\n2,SECRET77\n")
    world = world_for(tmp_path, [KEY, spec | {"type_level": level}], "t.csv", schema={"unique": []})
    try:
        outputs = run_ingest(world)
        said = (
            world.storage.read(outputs.report).decode() + world.storage.read(f"{outputs.dataset}/dataset.json").decode()
        )
    except DataError as error:
        said = error.report("ingest").model_dump_json()
    assert "***" in said
    assert "SECRET77" not in said + caplog.text


@pytest.mark.parametrize(
    ("newest", "ages_well"), [("2026-02-28", True), ("2026-02-27T11:59:59Z", False), ("2026-02-27T12:00:00Z", True)]
)
def test_freshness_is_judged_against_as_of(newest: str, ages_well: bool, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"k,at\n1,2020-01-01\n2,{newest}\n")
    columns = [KEY, column("at", "timestamp" if "T" in newest else "date")]
    world = world_for(tmp_path, columns, "t.csv", schema={"freshness": {"column": "at", "max_age": "2d"}})
    if ages_well:
        assert run_ingest(world).rows == 2
    else:
        with pytest.raises(DataError) as caught:
            run_ingest(world)
        assert "freshness: the newest value is 2026-02-27T11:59:59+00:00" in caught.value.findings[0].what


@pytest.mark.parametrize("spec", [
    column("a", "string", allowed=[True]),
    column("a", "date", min="soon"),
    column("a", "string", pattern="(?=x)y"),
])  # fmt: skip
def test_rules_that_do_not_fit_their_column_are_config_errors(spec: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k,a\n1,x\n")
    with pytest.raises(ConfigError) as caught:
        run_ingest(world_for(tmp_path, [KEY, spec], "t.csv"))
    assert "column" in caught.value.findings[0].where
