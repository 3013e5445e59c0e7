"""Each kind of mistake in a pipeline file is reported with its line, its key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import ConfigError, Finding
from contracts.pipeline import load_pipeline, parse_pipeline

ROOT = Path(__file__).parents[2]
ADULT = (ROOT / "adult.yaml").read_text(encoding="utf-8")


def findings_of(text: str) -> list[Finding]:
    with pytest.raises(ConfigError) as caught:
        parse_pipeline(text, "file.yaml")
    assert caught.value.findings
    return list(caught.value.findings)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


def first_changed_line(text: str) -> int:
    pairs = zip(ADULT.splitlines(), text.splitlines(), strict=False)
    return next(number for number, (before, after) in enumerate(pairs, 1) if before != after)


MISTAKES = {
    "a column that is not there": ("column: income", "column: incom", "target.column", "did you mean 'income'?"),
    "a metric of another task": (
        "{metric: f1, min: 0.62}",
        "{metric: rmse, min: 1}",
        "thresholds[1].metric",
        "roc_auc",
    ),
    "an unknown metric": ("metric: roc_auc\n  seed", "metric: roc\n  seed", "training.metric", "one of"),
    "an unknown slice metric": (
        "{column: sex, metric: roc_auc",
        "{column: sex, metric: rocauc",
        "slices[0].metric",
        "one of",
    ),
    "a slice of no column": ("{column: sex, metric", "{column: gender, metric", "slices[0].column", ""),
    "an unknown estimator": (
        "estimator: linear",
        "estimator: linar",
        "candidates[2].estimator",
        "did you mean 'linear'?",
    ),
    "a candidate named twice": ("name: linear", "name: lightgbm", "candidates[2].name", "name of its own"),
    "a wrong choice": ("method: stratified", "method: stratifid", "split.method", "did you mean 'stratified'?"),
    "a wrong number": ("early_stopping: 30", "early_stopping: 0", "candidates[0].early_stopping", "correct it"),
    "a text for a number": ("seed: 7\n  cand", "seed: seven\n  cand", "training.seed", "correct it"),
    "a rule that does not fit": ("min: 16,", "min: young,", "schema.columns[0].min", "correct it"),
    "a column named twice": ("name: workclass", "name: age", "schema.columns[1].name", "keep one"),
    "an unknown key": ("  task: binary", "  tusk: 1\n  task: binary", "target.tusk", "did you mean 'task'?"),
    "a positive class that is none": ('positive: ">50K"', 'positive: "50K"', "target.positive", ">50K"),
    "a group without method": ("seed: 7}", "seed: 7, group: sex}", "split.group", "remove it"),
    "nothing left to train on": ("validation: 0.2,", "validation: 0.8,", "split.validation", "lower one"),
    "a bad time zone": ("Europe/Berlin", "Europe/Berln", "schedule.timezone", "did you mean 'Europe/Berlin'?"),
    "a bad cron line": ("0 3 * * 1", "0 3 * * MON", "schedule.cron[0]", "in numbers"),
    "two bounds": ("{metric: roc_auc, min: 0.88}", "{metric: roc_auc, min: 0.88, max: 1}", "thresholds[0]", ""),
    "a query without sql": (
        "uri: data/adult.csv",
        "uri: data/adult.csv\n  query: select 1",
        "source.query",
        "remove it",
    ),
    "a bad name": ("name: adult-income", "name: Adult Income", "name", "correct it"),
    "a bad duration": ("30d", "30 days", "promotion.comparison.non_inferior_after", "correct it"),
    "steps of no canary": (
        "records: {share",
        "release: {steps: [{weight: 10}]}\nrecords: {share",
        "release.steps",
        "remove",
    ),
    "a canary that steps back": (
        "records: {share",
        "release: {strategy: canary, steps: [{weight: 50}, {weight: 10}]}\nrecords: {share",
        "release.steps[1].weight",
        "raise it",
    ),
    "a shadow without records": (
        "records: {share: 0.1}",
        "release: {strategy: canary, shadow: {hold: 1m}}\nrecords: {share: 0}",
        "release.shadow",
        "keep some",
    ),
    "a shadow of no canary": (
        "records: {share",
        "release: {shadow: {hold: 1m}}\nrecords: {share",
        "release.shadow",
        "remove it",
    ),
    "a canary that never ends": (
        "records: {share",
        "release: {strategy: canary, analysis: {patience: 1d}}\nrecords: {share",
        "release.analysis",
        "shorten",
    ),
    "a window that leaves gaps": (
        "records: {share",
        "release: {analysis: {window: 5s}}\nrecords: {share",
        "release.analysis.window",
        "raise it",
    ),
    "a bad pattern": ("sex, type: string", "sex, type: string, pattern: '['", "schema.columns[9].pattern", ""),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_names_line_key_and_remedy(mistake: str) -> None:
    right, wrong, key, remedy = MISTAKES[mistake]
    assert ADULT.count(right) == 1
    text = ADULT.replace(right, wrong)

    [finding] = findings_of(text)

    assert finding.where == f"file.yaml:{first_changed_line(text)}"
    assert finding.what.split(":")[0].endswith(key)
    assert remedy in finding.remedy


@pytest.mark.parametrize("name", ["Adult Income", "-adult", "adult-", "a" * 41, "a\\nb"])
def test_a_name_that_is_none_is_answered_by_what_one_is(name: str) -> None:
    [finding] = findings_of(ADULT.replace("name: adult-income", f'name: "{name}"'))

    assert "lower case letters, digits and -" in finding.what
    assert "as in churn-2" in finding.what
    assert "pattern" not in finding.what


def test_a_missing_key_is_reported_at_its_section() -> None:
    text = ADULT.replace("  task: binary\n", "")

    [finding] = findings_of(text)

    assert finding == Finding(
        where=f"file.yaml:{line_of(text, 'target:')}", what="target.task: is missing", remedy="add it"
    )


def test_a_binary_target_without_positive_class_is_refused() -> None:
    [finding] = findings_of(ADULT.replace('  positive: ">50K"\n', ""))

    assert "target.positive: is missing" in finding.what


def test_all_mistakes_come_at_once() -> None:
    text = ADULT.replace("column: income", "column: incom").replace("estimator: linear", "estimator: linar")
    text = text.replace("column: education,", "column: educaton,")

    assert {finding.what.split(":")[0] for finding in findings_of(text)} == {
        "target.column",
        "features.columns[1].column",
        "training.candidates[2].estimator",
    }


def test_mistakes_of_several_kinds_come_at_once_and_without_what_follows_from_them() -> None:
    text = ADULT.replace("target:\n", "targt:\n", 1).replace("estimator: lightgbm", "estimator: lightgmb")
    text = text.replace("{metric: roc_auc, min: 0.88}", "{metrc: roc_auc, min: 0.88}")
    text = text.replace("{metric: f1, min: 0.62}", "{metrik: f1, min: 0.62}")

    found = {finding.what.split(":")[0]: finding.remedy for finding in findings_of(text)}

    assert found == {
        "targt": "did you mean 'target'?",
        "training.candidates[0].estimator": "did you mean 'lightgbm'?",
        "gates.default.validation.thresholds[0].metrc": "did you mean 'metric'?",
        "gates.default.validation.thresholds[1].metrik": "did you mean 'metric'?",
    }


def test_an_empty_list_of_candidates_is_said_plainly() -> None:
    start, end = ADULT.index("  candidates:"), ADULT.index("\ngates:")

    [finding] = findings_of(f"{ADULT[:start]}  candidates: []\n{ADULT[end:]}")

    assert finding.what == "training.candidates: holds too few items, 1 at least"


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, not a pipeline file"):
        load_pipeline(tmp_path)


def test_a_regression_target_refuses_what_belongs_to_classes() -> None:
    text = ADULT.replace("task: binary", "task: regression").replace('  positive: ">50K"\n', "")

    keys = {finding.what.split(":")[0] for finding in findings_of(text)}

    assert {"target.column", "split.method", "training.metric"} <= keys


def test_a_shadow_of_a_regression_judges_no_labels() -> None:
    shadow = "release: {strategy: canary, shadow: {hold: 1m, max_label_changes: 0.1}}\nrecords: {share"
    classes = ADULT.replace("records: {share", shadow)
    text = classes.replace("task: binary", "task: regression").replace('  positive: ">50K"\n', "")
    key = "release.shadow.max_label_changes"

    [finding] = [each for each in findings_of(text) if each.what.startswith(key)]

    assert finding.where == f"file.yaml:{line_of(text, 'max_label_changes')}"
    assert finding.what == f"{key}: is for classes, this target is regression"
    assert "remove it" in finding.remedy
    assert parse_pipeline(classes, "file.yaml").release.shadow is not None, "of classes it is none"


@pytest.mark.parametrize("version", ["retrain/v2", "'1'", "null"])
def test_another_version_is_refused(version: str) -> None:
    [finding] = findings_of(ADULT.replace("retrain/v1", version, 1))

    assert finding.where == f"file.yaml:{line_of(ADULT, 'apiVersion')}"
    assert "retrain/v1" in finding.remedy


def test_a_key_that_stands_twice_is_refused() -> None:
    text = ADULT.replace("target:\n", "target:\n  task: binary\n", 1)

    [finding] = findings_of(text)

    assert finding.what == "task: stands twice"


@pytest.mark.parametrize("text", ["", "- a\n", "just words", "a: [1", "a: \x00", "\tkey: 1"])
def test_what_is_no_pipeline_file_is_refused(text: str) -> None:
    findings_of(text)


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such pipeline file") as caught:
        load_pipeline(tmp_path / "churn.yaml")

    assert "retrain init" in caught.value.remedy


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "churn.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match="not UTF-8"):
        load_pipeline(tmp_path / "churn.yaml")
