"""The wrapper of every step: typed inputs, one file an output, and an exit code that names the class of a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

import steps.features
from contracts.errors import (
    ConfigError,
    DataError,
    ErrorReport,
    Finding,
    InfrastructureError,
    NetworkError,
    ResourcesError,
    StageError,
    StorageError,
)
from contracts.settings import desk
from contracts.stages import Features
from steps.__main__ import main

SHA = "a" * 64
ARGUMENTS = ["features", "--dataset", "file:///d", "--dataset-sha256", SHA]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A desk of its own, as variables."""
    for name, value in desk(tmp_path, Path.cwd()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RETRAIN_PIPELINE", "adult.yaml")
    monkeypatch.setenv("RETRAIN_WORKFLOW", "w-1")
    monkeypatch.setenv("RETRAIN_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def features(inputs: Features.Inputs, *, world: object) -> Features.Outputs:
        raise error

    monkeypatch.setattr(steps.features, "features", features)


def report(home: Path) -> ErrorReport:
    return ErrorReport.model_validate_json((home / "store/reports/w-1/features.error.json").read_text())


def test_every_output_is_one_file_of_argos_text(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def features(inputs: Features.Inputs, *, world: object) -> Features.Outputs:
        given.append(inputs)
        return Features.Outputs(
            split="file:///s", split_sha256=SHA, transform_sha256=SHA, reused=True, summary="60 rows, größer"
        )

    monkeypatch.setattr(steps.features, "features", features)

    assert main([*ARGUMENTS, "--cache", ""]) == 0

    assert {p.name: p.read_text(encoding="utf-8") for p in (home / "outputs").iterdir()} == {
        "split": "file:///s", "split-sha256": SHA, "transform-sha256": SHA, "reused": "true",
        "candidates": "[]", "summary": "60 rows, größer",
    }  # fmt: skip
    assert given == [Features.Inputs(dataset="file:///d", dataset_sha256=SHA)]
    assert not (home / "store").exists()


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (DataError("broken"), 65, "data"),
        (InfrastructureError("broken"), 69, "infrastructure"),
        (StageError("broken"), 70, "code"),
        (ResourcesError("broken"), 71, "resources"),
        (StorageError("broken"), 74, "storage"),
        (NetworkError("broken"), 75, "network"),
        (ConfigError("broken"), 78, "config"),
    ],
)
def test_a_failure_on_purpose_has_its_classs_code_and_report_and_no_traceback(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: StageError,
    code: int,
    name: str,
) -> None:
    error.findings = (Finding(where="here", what="is wrong", remedy="mend it"),)
    failing(error, monkeypatch)

    assert main(ARGUMENTS) == code

    assert (report(home).error_class, report(home).message) == (name, "broken")
    assert report(home).findings == error.findings
    assert not (home / "outputs").exists()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [(MemoryError(), 71, "resources"), (KeyError("age"), 70, "code"), (OSError("disk"), 70, "code")],
)
def test_a_failure_that_nobody_meant_shows_its_traceback(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
    code: int,
    name: str,
) -> None:
    failing(error, monkeypatch)

    assert main(ARGUMENTS) == code

    assert report(home).error_class == name
    assert report(home).remedy
    assert "Traceback" in capfd.readouterr().err


def test_parameters_that_do_not_fit_are_config_with_a_finding_each(home: Path) -> None:
    assert main(["features", "--dataset-sha256", "short", "--cache", "perhaps"]) == 78

    found = {finding.where: finding.what for finding in report(home).findings}
    assert set(found) == {"parameter dataset", "parameter dataset-sha256", "parameter cache"}
    assert found["parameter dataset"] == "is missing"


@pytest.mark.parametrize("arguments", [[], ["no-such-stage"], ["features", "--colour", "red"], ["features", "extra"]])
def test_wrong_usage_is_64(home: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)

    assert left.value.code == 64


def test_help_is_no_failure(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["features", "--help"])

    assert left.value.code == 0
    assert "--dataset-sha256" in capsys.readouterr().out


def test_a_missing_setting_is_config_even_where_no_report_can_be_stored(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RETRAIN_STORE")

    assert main(ARGUMENTS) == 78

    assert "RETRAIN_STORE" in caplog.text
    assert not (home / "store").exists()


def test_a_store_that_cannot_take_the_report_changes_no_exit_code(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("RETRAIN_STORE", (home / "file" / "store").as_uri())
    failing(DataError("broken"), monkeypatch)

    assert main(ARGUMENTS) == 65

    assert "the report could not be stored" in caplog.text


def test_a_wrong_pipeline_file_is_config(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "bad.yaml").write_text("apiVersion: retrain/v9\n")
    monkeypatch.setenv("RETRAIN_PIPELINE", str(home / "bad.yaml"))

    assert main(ARGUMENTS) == 78
