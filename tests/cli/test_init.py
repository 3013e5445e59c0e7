"""`retrain init` writes a pipeline file that loads, for the kinds of data that people have."""

from __future__ import annotations

import gzip
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from contracts.errors import ConfigError, DataError
from contracts.metrics import Task
from contracts.pipeline import Pipeline, load_pipeline
from contracts.pipeline.table import ColumnType
from workflows.cli import schema
from workflows.cli.init import init

ADULT = Path(__file__).parents[2] / "data" / "adult.csv"


@pytest.fixture
def table() -> pd.DataFrame:
    """400 customers: an identifier, numbers with gaps, few and many categories, a date, three possible targets."""
    rng = np.random.default_rng(0)
    rows = 400
    return pd.DataFrame(
        {
            "customer": [f"c{i:05d}" for i in range(rows)],
            "age": rng.integers(18, 90, rows),
            "spent": np.where(rng.random(rows) < 0.1, np.nan, rng.gamma(2, 50, rows).round(2)),
            "plan": rng.choice(["basic", "plus", "pro"], rows),
            "since": pd.date_range("2024-01-01", periods=rows, freq="D").strftime("%Y-%m-%d"),
            "churned": rng.choice(["yes", "no"], rows, p=[0.2, 0.8]),
            "segment": rng.choice(["a", "b", "c", "d"], rows),
            "worth": rng.normal(100, 20, rows).round(3),
        }
    )


def made(folder: Path, table: pd.DataFrame, target: str, **options: object) -> Pipeline:
    data = folder / "customers.csv"
    table.to_csv(data, index=False)
    out = folder / "customers.yaml"
    init(data, target, out=out, **options)  # type: ignore[arg-type]  # options vary by test
    return load_pipeline(out)


def test_a_binary_target_takes_the_rarer_class_as_positive_and_says_so(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = made(tmp_path, table, "churned")

    assert (pipeline.target.task, pipeline.target.positive) == (Task.BINARY, "yes")
    assert pipeline.split.method == "stratified"
    assert "positive class: 'yes', the rarer class" in capsys.readouterr().out


def test_types_nullability_and_classes_are_errors_and_all_else_warns(tmp_path: Path, table: pd.DataFrame) -> None:
    columns = {c.name: c for c in made(tmp_path, table, "churned").table.columns}

    assert [columns[n].type for n in ("customer", "age", "spent", "since")] == [
        ColumnType.STRING, ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DATE,
    ]  # fmt: skip
    assert columns["age"].nullable.value is False
    assert columns["age"].nullable.level == "error"
    assert columns["spent"].nullable.value is True
    target = columns["churned"].allowed
    assert target is not None
    assert (set(target.value), target.level) == ({"yes", "no"}, "error")
    rules = [columns["age"].min, columns["age"].max, columns["plan"].allowed, columns["spent"].max_missing]
    assert [rule.level for rule in rules if rule is not None] == ["warn"] * 4


def test_identifiers_are_left_out_and_dates_get_no_upper_bound(tmp_path: Path, table: pd.DataFrame) -> None:
    pipeline = made(tmp_path, table, "churned")

    assert [p.column for p in pipeline.features.columns if p.drop] == ["customer"]
    assert pipeline.table.column("since").max is None
    first, last = table["since"].min(), table["since"].max()
    comment = next(
        line for line in (tmp_path / "customers.yaml").read_text().splitlines() if "time: {column: since" in line
    )
    bounds = re.findall(r"\d{4}-\d\d-\d\d", comment)
    assert str(first)[:10] < bounds[0] < bounds[1] < str(last)[:10]


def test_several_classes_are_multiclass_with_a_gate_above_chance(tmp_path: Path, table: pd.DataFrame) -> None:
    pipeline = made(tmp_path, table, "segment")

    [threshold] = pipeline.gates.default.validation.thresholds
    assert pipeline.target.task is Task.MULTICLASS
    assert (threshold.metric, threshold.min) == ("balanced_accuracy", 0.325)  # a tenth of the way from 1/4 to 1


def test_a_number_is_regressed(tmp_path: Path, table: pd.DataFrame) -> None:
    pipeline = made(tmp_path, table, "worth")

    assert (pipeline.target.task, pipeline.split.method) == (Task.REGRESSION, "random")
    assert pipeline.gates.default.validation.thresholds[0].metric == "r2"


@pytest.mark.parametrize(
    ("values", "positive"),
    [([0, 1], 1), (["false", "true"], True), (["No", "Yes"], "Yes")],
    ids=["int", "bool", "text"],
)
def test_the_positive_class_keeps_the_columns_type(
    tmp_path: Path, table: pd.DataFrame, values: list[object], positive: object
) -> None:
    table["churned"] = [values[1 if i % 4 == 0 else 0] for i in range(len(table))]

    assert made(tmp_path, table, "churned").target.positive == positive


def test_task_and_positive_class_can_be_said(tmp_path: Path, table: pd.DataFrame) -> None:
    table["stars"] = np.arange(len(table)) % 5 + 1

    assert made(tmp_path, table, "churned", positive="no").target.positive == "no"
    assert made(tmp_path, table, "stars", force=True).target.task is Task.MULTICLASS
    assert made(tmp_path, table, "stars", task=Task.REGRESSION, force=True).target.task is Task.REGRESSION


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("churnt", {}, "no column 'churnt'"),
        ("churned", {"task": Task.REGRESSION}, "regression predicts numbers"),
        ("worth", {"task": Task.BINARY}, "whole numbers"),
        ("segment", {"task": Task.BINARY}, "a binary target has two"),
        ("churned", {"positive": "maybe"}, "'maybe' is no value"),
        ("constant", {}, "one value only"),
    ],
)
def test_a_target_that_does_not_fit_is_refused(
    tmp_path: Path, table: pd.DataFrame, target: str, options: dict[str, object], message: str
) -> None:
    table["constant"] = "x"

    with pytest.raises((typer.BadParameter, DataError), match=message):
        made(tmp_path, table, target, **options)
    assert not (tmp_path / "customers.yaml").exists()


def test_a_file_that_is_there_is_overwritten_only_by_force(tmp_path: Path, table: pd.DataFrame) -> None:
    made(tmp_path, table, "churned")
    (tmp_path / "customers.yaml").write_text("mine", encoding="utf-8")

    with pytest.raises(ConfigError, match="is there already"):
        made(tmp_path, table, "churned")

    assert (tmp_path / "customers.yaml").read_text(encoding="utf-8") == "mine"
    assert made(tmp_path, table, "churned", force=True).name == "customers"


def test_what_is_wrong_with_data_or_target_is_said_first(tmp_path: Path, table: pd.DataFrame) -> None:
    made(tmp_path, table, "churned")

    with pytest.raises(typer.BadParameter, match="no column 'churnt'"):
        made(tmp_path, table, "churnt")
    with pytest.raises(ConfigError, match="no such file"):
        init(tmp_path / "none.csv", "churned", out=tmp_path / "customers.yaml")
    with pytest.raises(ConfigError, match="is a pattern") as pattern:
        init(tmp_path / "*.csv", "churned", out=tmp_path / "customers.yaml")
    assert "--data names one of its files" in pattern.value.remedy


def test_the_command_that_comes_next_works_when_pasted(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    table.to_csv(tmp_path / "t.csv", index=False)
    out = tmp_path / "my model.yaml"
    init(tmp_path / "t.csv", "churned", out=out)

    command = capsys.readouterr().out.rpartition("`retrain run ")[2].partition("`")[0]
    assert shlex.split(command) == [str(out)]


def test_the_model_is_named_as_the_file_that_is_written_and_the_name_is_said(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    table.to_csv(tmp_path / "staff.csv", index=False)
    for stem in ("churn", "age"):  # two models of one data file
        init(tmp_path / "staff.csv", "churned", out=tmp_path / f"{stem}.yaml")
        assert load_pipeline(tmp_path / f"{stem}.yaml").name == stem
        assert f"its versions are those of model {stem}\n" in capsys.readouterr().out


def test_a_letter_of_another_encoding_is_found_wherever_it_stands(tmp_path: Path) -> None:
    data = tmp_path / "t.csv"
    lines = [f"Miller,{number},{'yes' if number % 3 else 'no'}" for number in range(9_000)]
    data.write_bytes("\n".join(["name,age,y", *lines, "M\u00fcller,1,no", ""]).encode("latin-1"))
    init(data, "y", out=tmp_path / "t.yaml")

    pipeline = load_pipeline(tmp_path / "t.yaml")
    assert pipeline.source.csv.encoding == "latin-1"


def test_data_beside_the_file_is_named_relative_to_it(tmp_path: Path, table: pd.DataFrame) -> None:
    assert made(tmp_path, table, "churned").source.uri == "customers.csv"

    elsewhere = tmp_path / "pipelines" / "churn.yaml"
    elsewhere.parent.mkdir()
    init(tmp_path / "customers.csv", "churned", out=elsewhere)

    assert load_pipeline(elsewhere).source.uri == str(tmp_path / "customers.csv")


@pytest.mark.parametrize("kind", ["parquet", "semicolons", "gzip"])
def test_other_formats_are_read(tmp_path: Path, table: pd.DataFrame, kind: str) -> None:
    data = tmp_path / {"parquet": "t.parquet", "semicolons": "t.csv", "gzip": "t.csv.gz"}[kind]
    if kind == "parquet":
        table.to_parquet(data, index=False)
    elif kind == "semicolons":
        table.to_csv(data, index=False, sep=";")
    else:
        data.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    out = tmp_path / "t.yaml"

    init(data, "churned", out=out)

    pipeline = load_pipeline(out)
    assert pipeline.target.positive == "yes"
    assert pipeline.source.csv.delimiter == (";" if kind == "semicolons" else ",")


def test_cells_that_are_not_of_their_columns_type_are_named_and_left_to_the_run_to_refuse(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    table["age"] = table["age"].astype(str)
    table.loc[4, "age"] = "abc"

    age = made(tmp_path, table, "churned").table.column("age")

    assert (age.type, age.type_level, age.nullable.value) == (ColumnType.INTEGER, "error", True)
    said = capsys.readouterr().out
    assert "age: 399 of 400 cells are integers; not: row 5 'abc'; mend them, or `type_level: warn`" in said


def test_awkward_names_and_values_survive_as_yaml(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"on: off": ["#1", "{x}", "null ", "'q'"] * 20, "yes": [1, 2, 3, 4] * 20, "y": ["a", "b"] * 40}
    )

    pipeline = made(tmp_path, frame, "y")

    assert pipeline.table.names == ("on: off", "yes", "y")
    allowed = pipeline.table.column("on: off").allowed
    assert allowed is not None
    assert set(allowed.value) == {"#1", "{x}", "null ", "'q'"}


def test_the_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        init(tmp_path / "none.csv", "y", out=tmp_path / "y.yaml")


def test_what_is_no_data_file_and_no_folder_to_write_to_is_said_plainly(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        init(tmp_path, "y", out=tmp_path / "y.yaml")
    text = tmp_path / "t.parquet"
    table.to_csv(text, index=False)
    with pytest.raises(DataError, match="is not a Parquet file"):
        init(text, "churned", out=tmp_path / "y.yaml")
    with pytest.raises(ConfigError, match="there is no folder"):
        init(text, "churned", out=tmp_path / "none" / "y.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_the_shipped_data_gets_its_missing_marker(tmp_path: Path) -> None:
    init(ADULT, "income", out=tmp_path / "adult.yaml")

    pipeline = load_pipeline(tmp_path / "adult.yaml")
    assert pipeline.source.csv.missing == ("?",)
    assert pipeline.target.positive == ">50K"


def test_schema_infer_prints_a_section_to_paste() -> None:
    done = CliRunner().invoke(schema.app, ["infer", str(ADULT)])

    assert done.exit_code == 0
    assert done.stdout.startswith("schema:\n")
    assert "{name: age, type: integer, nullable: false" in done.stdout


def test_schema_file_prints_the_json_schema() -> None:
    done = CliRunner().invoke(schema.app, ["file"])

    assert json.loads(done.stdout)["title"] == "retrain pipeline file"


def test_init_is_a_command_with_examples() -> None:
    app = typer.Typer(rich_markup_mode="rich")
    app.command()(init)

    assert "retrain init --data churn.csv --target churned" in CliRunner().invoke(app, ["--help"]).stdout


def test_a_sensitive_column_leaves_no_cell_in_the_file_and_a_warning_of_what_the_model_holds(
    tmp_path: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = made(tmp_path, table, "churned", sensitive=["plan", "age"])

    plan, age = (pipeline.table.column(name) for name in ("plan", "age"))
    assert (plan.sensitive, plan.allowed, age.sensitive, age.min, age.max) == (True, None, True, None, None)
    assert "plus" not in (tmp_path / "customers.yaml").read_text()
    said = capsys.readouterr().out
    assert "warning: plan is sensitive and a feature: its categories will lie in the model" in said
    assert "warning: age" not in said
    with pytest.raises(typer.BadParameter, match="no column 'plans'"):
        made(tmp_path, table, "churned", sensitive=["plans"], force=True)
