"""Batch scores: a cell means what it meant in training, one row out for one row in, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from contracts.errors import ConfigError, DataError
from serving.model import PackagedModel
from steps import predict as predicting
from steps.dataset import read_table
from steps.predict import predict
from tests.steps.trained import PIPELINE, Trained, make_version, rows

COLUMNS = ["row", "prediction", "probability_no", "probability_yes", "version"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return make_version(tmp_path_factory.mktemp("home"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "new.csv"
    path.write_text(rows(40, seed=9))
    return path


def test_scores_are_the_model_s_own_one_line_a_row(trained: Trained, tmp_path: Path) -> None:
    run = trained.world.tracking.record(trained.run_id)
    data = read_table(trained.world, run.tags["retrain.dataset"])
    model = PackagedModel.load(trained.world.tracking.package(trained.run_id, tmp_path))
    source = Path(trained.world.settings.source_base) / "churn.csv"
    scored = predict(trained.archive(), "1", str(source), tmp_path / "out.parquet", tmp_path)
    out = pq.read_table(tmp_path / "out.parquet")
    expected = model.predict(data)
    assert (scored.model, scored.version, scored.rows, scored.unseen) == ("churn", 1, 600, {})
    assert out.column_names == COLUMNS
    assert out.column("row").to_pylist() == list(range(1, 601))
    assert out.column("prediction").to_pylist() == expected.labels.tolist()
    assert expected.scores is not None
    assert out.column("probability_yes").to_pylist() == expected.scores[:, 1].tolist()
    assert set(out.column("version").to_pylist()) == {1}


def test_a_number_is_predicted_as_one(tmp_path: Path) -> None:
    target = PIPELINE.replace('{column: churned, task: binary, positive: "yes"}', "{column: spend, task: regression}")
    estimator = (
        target.replace("roc_auc", "rmse").replace('"my_model:make"', "linear").replace("accuracy, min", "mae, max")
    )
    version = make_version(tmp_path, estimator.replace("max: 0.1", "max: 1000"))
    (tmp_path / "new.csv").write_text(rows(5, seed=9))
    predict(version.archive(), "1", str(tmp_path / "new.csv"), tmp_path / "out.parquet", tmp_path)
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["row", "prediction", "version"]
    assert len(set(out.column("prediction").to_pylist())) == 5


def test_batches_do_not_change_the_scores(
    trained: Trained, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(trained.archive(), "1", str(file), tmp_path / "whole.csv", tmp_path / "a")
    monkeypatch.setattr(predicting, "BATCH_ROWS", 7)
    predict(trained.archive(), "1", str(file), tmp_path / "parts.csv", tmp_path / "b")
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "parts.csv").read_bytes()


def test_the_target_may_be_absent_and_other_columns_present(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("id,spend,since,plan,age\n7,12.5,2024-03-01,basic,?\n8,,,plus,30\n")
    scored = predict(trained.archive(), "1", str(tmp_path / "new.csv"), tmp_path / "out.csv.gz", tmp_path)
    out = pacsv.read_csv(tmp_path / "out.csv.gz")
    assert (scored.rows, out.num_rows, out.column_names) == (2, 2, COLUMNS)


def test_a_category_that_training_did_not_see_is_counted(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("age,plan,since,spend\n30,gold,2024-01-01,1\n31,basic,2024-01-01,1\n")
    scored = predict(trained.archive(), "1", str(tmp_path / "new.csv"), tmp_path / "out.csv", tmp_path)
    assert scored.unseen == {"plan": 1}


def test_a_file_that_does_not_fit_is_refused_with_every_finding_and_nothing_is_written(
    trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "new.csv").write_text("age,plan,since,spend\nold,basic,2024-01-01,1\n31,basic,soon,1\n")
    with pytest.raises(DataError) as caught:
        predict(trained.archive(), "1", str(tmp_path / "new.csv"), tmp_path / "out.csv", tmp_path)
    assert [finding.where for finding in caught.value.findings] == ["column age", "column since"]
    assert not list(tmp_path.glob("*out.csv*"))
    (tmp_path / "short.csv").write_text("age,plan\n1,basic\n")
    with pytest.raises(DataError) as caught:
        predict(trained.archive(), "1", str(tmp_path / "short.csv"), tmp_path / "out.csv", tmp_path)
    assert len(caught.value.findings) == 2


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_file_with_another_delimiter_gives_the_same_scores(
    trained: Trained, file: Path, tmp_path: Path, delimiter: str
) -> None:
    predict(trained.archive(), "1", str(file), tmp_path / "commas.csv", tmp_path / "a")
    file.write_text(file.read_text().replace(",", delimiter))
    predict(trained.archive(), "1", str(file), tmp_path / "others.csv", tmp_path / "b")
    assert (tmp_path / "commas.csv").read_bytes() == (tmp_path / "others.csv").read_bytes()


def test_a_file_that_is_not_there_or_has_no_rows_is_refused_in_the_words_of_who_scores_it(
    trained: Trained, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="there is no file") as absent:
        predict(trained.archive(), "1", str(tmp_path / "absent.csv"), tmp_path / "out.csv", tmp_path)
    assert absent.value.remedy == "name a CSV, CSV.gz or Parquet file, by a path or a URI"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    with pytest.raises(DataError, match="there is a header, and no rows"):
        predict(trained.archive(), "1", str(file), tmp_path / "out.csv", tmp_path)
    assert not list(tmp_path.glob("*out.csv*"))


def test_an_unknown_format_and_an_unwritable_place_are_told(trained: Trained, file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot tell the format"):
        predict(trained.archive(), "1", str(file), tmp_path / "out.xlsx", tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        predict(trained.archive(), "1", str(file), tmp_path / "no" / "out.csv", tmp_path)
    with pytest.raises(ConfigError, match="cannot write"):
        predict(trained.archive(), "1", str(file), file / "out.csv", tmp_path)  # a file is no folder
    named = file.rename(tmp_path / "new.parquet")
    with pytest.raises(DataError, match="is not a Parquet file"):
        predict(trained.archive(), "1", str(named), tmp_path / "out.csv", tmp_path)


def test_the_command_prints_csv_and_warns_beside_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from workflows.cli.main import app

    home = Path(trained.world.settings.server_home).parent
    monkeypatch.setenv("RETRAIN_HOME", str(home))
    (tmp_path / "new.csv").write_text("age,plan,since,spend\n30,gold,2024-01-01,1\n")
    out = tmp_path / "scores.csv"
    result = CliRunner().invoke(
        app, ["predict", str(tmp_path / "new.csv"), "--model", "churn@1", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 1
    assert "1 rows hold a value of plan" in result.stderr
    assert out.read_text().splitlines()[0] == ",".join(f'"{name}"' for name in COLUMNS)
