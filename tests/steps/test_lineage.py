"""Lineage: every question of the auditor, answered from ledger, registry and store; also when parts are gone."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contracts.errors import ConfigError
from contracts.names import tag
from contracts.outcomes import Promotion, State
from contracts.references import DatasetManifest
from contracts.settings import Settings
from steps.archive import Archive, Reference, entries_of
from steps.lifecycle import moment_text
from steps.lineage import Lineage, lineage
from steps.mlflow_connection import mlflow_client
from steps.register import register
from steps.world import World
from tests.loopback import Handler, serving
from tests.steps.registered import CHECK, NOW, finished_run, make_world, to_register, validated
from workflows.cli.checks import short
from workflows.cli.lineage import render

MODEL = "adult-income"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def register_version(world: World, commit: str = "abc123") -> tuple[str, int]:
    uri = world.storage.uri("datasets", "d" * 64)
    manifest = DatasetManifest(
        sha256="d" * 64, schema_sha256="e" * 64, rows=10_000, columns=(("age", "integer"),),
        sources=("file:///data/adult.csv",), as_of=NOW,
    )  # fmt: skip
    world.storage.write(f"{uri}/dataset.json", manifest.model_dump_json().encode())
    tags = {
        tag("dataset"): uri, tag("schema_sha256"): "e" * 64, tag("code_version"): "0.1.0", tag("lock_sha256"): "1" * 64,
        tag("pipeline_sha256"): "f" * 64, tag("candidate"): "linear", tag("code_commit"): commit,
    }  # fmt: skip
    run = finished_run(world, tags)
    client = mlflow_client(world.settings)
    client.log_param(run, "parameters.C", "1.0")
    client.log_metric(run, "test_roc_auc", 0.91)
    return run, register(to_register(world, run), world=world).version


def enter(world: World, state: State, version: int, run: str, **evidence: Any) -> None:
    world.ledger.append(
        MODEL, state, version=version, run_id=run, workflow="release-1", by="ann", reason=f"{state.value} for a reason",
        evidence=evidence, after=world.ledger.head(MODEL), at=NOW,
    )  # fmt: skip


def release(world: World) -> tuple[str, int]:
    run, version = register_version(world)
    decision = {
        "decision": Promotion.APPROVED.value,
        "checks": [CHECK.model_dump(mode="json")],
        "report": "file:///p.json",
    }
    enter(world, State.APPROVED, version, run, **decision)
    enter(world, State.RELEASING, version, run, image="reference")
    enter(world, State.SERVING, version, run, url="http://127.0.0.1:8080")
    world.registry.set_alias("production", version)
    return run, version


def ask(world: World, reference: str = "production") -> Lineage:
    asked = Reference.parse(reference)
    return lineage(Archive.open(world.settings, asked.model), asked.name)


def test_production_is_explained_from_data_to_approval(world: World) -> None:
    run, version = release(world)
    found = ask(world)
    assert (found.model, found.version, found.state, found.run_id) == (MODEL, version, State.SERVING, run)
    assert (found.dataset.sha256, found.dataset.rows, found.dataset.schema_sha256) == ("d" * 64, 10_000, "e" * 64)
    assert found.dataset.sources == ("file:///data/adult.csv",)
    assert (found.split_sha256, found.transform_sha256) == ("5" * 64, "7" * 64)
    assert (found.code.commit, found.code.lock_sha256, found.code.pipeline_sha256) == ("abc123", "1" * 64, "f" * 64)
    assert (found.candidate, found.parameters, found.metrics) == (
        "linear",
        {"parameters.C": "1.0"},
        {"test_roc_auc": 0.91},
    )
    assert found.validation is not None
    assert found.promotion is not None
    assert (found.validation.decision, found.validation.checks) == ("passed", (CHECK,))
    assert (found.promotion.decision, found.promotion.checks) == ("approved", (CHECK,))
    assert found.approval is not None
    assert (found.approval.by, found.approval.at, found.approval.reason) == ("ann", NOW, "approved for a reason")
    assert (found.approval.word, found.approval.claimed_requester) == ("gate", "ann"), (
        "an entry of before it was told apart"
    )
    assert found.serving is not None
    assert (found.serving.since, found.serving.image, found.serving.url) == (NOW, "reference", "http://127.0.0.1:8080")
    assert found.serving.answers is False, "nothing serves in this test, and that is said"
    assert found.workflows == ("retrain-1", "release-1")
    assert [e.state.value for e in found.history] == ["registered", "approved", "releasing", "serving"]


def test_a_version_can_be_named_in_several_ways(world: World) -> None:
    release(world)
    for reference in ("1", "adult-income@1", "adult-income@production", "staging", "adult-income@"):
        assert ask(world, reference).version == 1


def test_a_commit_and_the_digest_of_an_image_name_their_version(world: World) -> None:
    commit, digest = "c0ffee" * 6 + "c0de", "9" * 64
    run, version = register_version(world, commit)
    enter(world, State.APPROVED, version, run)
    enter(world, State.RELEASING, version, run, image=f"registry/adult@sha256:{digest}")
    register_version(world)
    for name in (commit, commit[:7], digest, f"sha256:{digest}"):
        assert Archive.open(world.settings).versions(name) == [version]


def test_an_mlflow_run_and_an_entry_name_their_version_shortened(world: World) -> None:
    run, version = register_version(world)
    entry = world.ledger.entries(MODEL)[-1].id
    archive = Archive.open(world.settings)
    for name in (run[:7], run[:8], run, entry[:7], entry[:12], entry):
        assert archive.versions(name) == [version]
    with pytest.raises(ConfigError, match="no alias"):
        archive.versions("retrain-")  # a workflow's name is not shortened


def test_a_prediction_names_its_version_without_a_record(world: World) -> None:
    release(world)
    release(world)
    for version in (1, 2):
        whole = f"{MODEL}-{version}-{'0' * 31}a"
        for reference in (whole, f"{whole}-17", f"{MODEL}@{whole}"):
            assert ask(world, reference).version == version


def test_a_replaced_version_serves_no_more_and_still_has_its_approval(world: World) -> None:
    release(world)
    release(world)
    found = ask(world, "1")
    assert (found.state, found.serving) == (State.RETIRED, None)
    assert found.approval is not None
    assert found.promotion is not None
    assert (found.promotion.decision, found.promotion.checks) == ("approved", (CHECK,))
    assert ask(world).version == 2


@pytest.mark.parametrize("ended", [State.SUPERSEDED, State.EXPIRED])
def test_an_approval_that_was_ended_still_shows_what_both_gates_checked(world: World, ended: State) -> None:
    run, version = register_version(world)
    approval = {"decision": "approved", "checks": [CHECK.model_dump(mode="json")], "report": "file:///p.json"}
    enter(world, State.APPROVED, version, run, **approval, expires=moment_text(NOW - timedelta(days=1)))
    if ended is State.SUPERSEDED:
        release(world)
    enter(world, ended, version, run, approval="0" * 64)
    found = ask(world, "1")
    assert found.validation is not None
    assert found.promotion is not None
    assert found.validation.checks == found.promotion.checks == (CHECK,)
    assert (found.promotion.decision, found.promotion.report) == (ended.value, "file:///p.json")
    assert found.promotion.reason == f"{ended.value} for a reason"


def test_an_alias_moved_by_hand_is_noted_and_not_believed(world: World) -> None:
    release(world)
    release(world)
    world.registry.set_alias("production", 1)
    found = ask(world)
    assert found.version == 2
    assert any("alias production names 1" in note for note in found.notes)


def test_what_was_removed_is_answered_from_the_ledger(world: World) -> None:
    run, _ = release(world)
    mlflow_client(world.settings).delete_run(run)
    for path in (Path(world.settings.server_home).parent / "store").rglob("*.json"):
        path.unlink()
    mlflow_client(world.settings).delete_model_version(MODEL, "1")
    found = ask(world)
    assert (found.dataset.sha256, found.code.commit, found.candidate) == ("d" * 64, "abc123", "linear")
    assert found.promotion is not None
    assert found.validation is not None
    assert found.promotion.checks == found.validation.checks == (CHECK,), "both gates' numbers are chained"
    assert any("not in the store any more" in note for note in found.notes)


def test_an_entry_of_before_that_has_the_verdict_alone_is_answered_from_the_report(world: World) -> None:
    run = finished_run(world)
    report = validated(world, run)
    world.ledger.append(
        MODEL, State.REGISTERED, version=1, run_id=run, workflow="retrain-1", by="retrain-1", reason="passed",
        evidence={"report": report, "validation": "passed"}, after=None, at=NOW,
    )  # fmt: skip
    found = ask(world, "1")
    assert found.validation is not None
    assert (found.validation.decision, found.validation.checks) == ("passed", (CHECK,))


def test_a_report_altered_in_the_store_changes_no_number_and_is_told(world: World) -> None:
    release(world)
    before = ask(world)
    assert before.validation is not None
    assert not [note for note in before.notes if "report" in note]
    report = world.storage.read(before.validation.report)
    world.storage.write(before.validation.report, report.replace(b"0.91", b"0.99"))
    found = ask(world)
    assert found.validation == before.validation
    assert any("is not the report that the ledger has the hash of" in note for note in found.notes)


def test_what_made_several_versions_names_all_of_them_and_by_a_moment_fewer(world: World) -> None:
    for _ in range(2):
        release(world)
    archive = Archive.open(world.settings)
    for name in ("d" * 64, "ddddddd", "1" * 64, "f" * 12):
        assert archive.versions(name) == [1, 2]
        with pytest.raises(ConfigError, match="2 versions of adult-income have"):
            archive.version(name)
    assert [entry.version for entry in entries_of(world.settings, "d" * 64)] == [1, 1, 1, 1, 2, 2, 2, 1, 2]
    assert entries_of(world.settings, MODEL) == entries_of(world.settings) == world.ledger.entries(MODEL)
    with pytest.raises(ConfigError, match="no alias 'ddddddd'"):
        archive.versions("ddddddd", NOW - timedelta(days=1))
    assert entries_of(world.settings, at=NOW - timedelta(seconds=1)) == []
    assert [entry.version for entry in entries_of(world.settings, "2")] == [2, 2, 2, 2]


def test_a_tag_edited_by_hand_does_not_change_the_answer(world: World) -> None:
    run, _ = release(world)
    mlflow_client(world.settings).set_tag(run, tag("dataset_sha256"), "0" * 64)
    assert ask(world).dataset.sha256 == "d" * 64


def test_a_version_that_only_waits_has_no_approval(world: World) -> None:
    register_version(world)
    found = ask(world, "1")
    assert (found.state, found.promotion, found.approval, found.serving) == (State.REGISTERED, None, None, None)


def test_what_is_not_there_is_told(world: World) -> None:
    register_version(world)
    for reference, said in (
        ("production", "no version of adult-income serves"), ("other@1", "does not know a model 'other'"),
        ("9", "no version 9"), ("canary", "no alias 'canary'"),
        (f"{MODEL}-9-{'0' * 32}", "no version 9"), (f"other-1-{'0' * 32}", "does not know a model 'other'"),
        (f"{MODEL}@other-1-{'0' * 32}", "is a prediction of other"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            ask(world, reference)


def test_an_empty_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no version was registered yet"):
        ask(make_world(tmp_path))


def register_churn(world: World, run: str, **evidence: Any) -> None:
    world.ledger.append(
        "churn", State.REGISTERED, version=1, run_id=run, workflow="w", by="w", reason="", evidence=evidence,
        after=None, at=NOW,
    )  # fmt: skip


def test_of_several_models_the_one_is_found_that_has_what_was_named(world: World) -> None:
    run, _ = register_version(world)
    register_churn(world, run, code_commit="c" * 40, dataset_sha256="d" * 64)

    archive, name = Archive.named(world.settings, "c" * 8)
    assert (archive.model, archive.versions(name)) == ("churn", [1])
    with pytest.raises(ConfigError, match="versions of several models have dddddddd") as several:
        Archive.named(world.settings, "d" * 8)
    assert several.value.remedy == "say which: adult-income@dddddddd or churn@dddddddd"
    with pytest.raises(ConfigError, match="there are several models"):
        Archive.named(world.settings, "b" * 8)


def test_of_several_models_one_must_be_named(world: World) -> None:
    run, _ = register_version(world)
    register_churn(world, run)
    with pytest.raises(ConfigError, match="several models") as caught:
        ask(world, "1")
    assert caught.value.remedy == "say which: adult-income or churn"


def test_people_read_the_same_answer(world: World) -> None:
    run, _ = release(world)
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(render(ask(world)))
    text = console.export_text()
    for part in ("d" * 64, "10,000", "abc123", "C=1.0", "roc_auc", ">= 0.88", "by ann", run, "1" * 64, "serves since"):
        assert part in text


class _Api(Handler):
    """As much of an API server as knows one Deployment."""

    version = "1"
    ready = 1

    def do_GET(self) -> None:
        answers = {
            "/version": {"major": "1", "minor": "34"},
            "/apis/apps/v1": {
                "kind": "APIResourceList", "groupVersion": "apps/v1",
                "resources": [{"name": "deployments", "kind": "Deployment", "namespaced": True, "verbs": ["get"],
                               "singularName": "deployment"}],
            },
            "/apis": {"kind": "APIGroupList", "groups": [{
                "name": "apps", "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"}}]},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
            f"/apis/apps/v1/namespaces/models/deployments/{MODEL}": {
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": MODEL},
                "spec": {"template": {"metadata": {"annotations": {"retrain/version": self.version}}}},
                "status": {"availableReplicas": self.ready},
            },
        }  # fmt: skip
        found = answers.get(self.path.split("?")[0])
        body = json.dumps(found or {"message": "no such thing"}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize(
    ("version", "ready", "answers", "note"),
    [("1", 2, True, ""), ("7", 2, False, "servers of version 7"), ("1", 0, False, "no server that is ready")],
)
def test_on_a_cluster_the_deployment_says_what_answers(
    version: str, ready: int, answers: bool, note: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(world)
    # where the libraries look is decided when they are imported, so KUBECONFIG comes too late
    for module in ("kubernetes.config", "kubernetes.config.kube_config"):
        monkeypatch.setattr(f"{module}.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    changed = {"deploy_target": "kubernetes", "serving_namespace": "models"}
    settings = Settings.model_validate(world.settings.model_dump(round_trip=True) | changed)
    with serving(type("Api", (_Api,), {"version": version, "ready": ready})) as port:
        (tmp_path / "kubeconfig").write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }))  # fmt: skip
        found = lineage(Archive.open(settings, MODEL), "production")

    assert found.serving is not None
    assert found.serving.answers is answers
    assert note in " ".join(found.notes)


def test_a_model_alone_means_its_production(world: World) -> None:
    release(world)
    model = world.pipeline.name
    for reference, name in ((model, "production"), (f"{model}@1", "1"), ("production", "production"), ("1", "1")):
        archive, asked = Archive.named(world.settings, reference)
        assert (archive.model, asked) == (model, name)


def test_where_the_cluster_may_not_be_asked_lineage_says_so_and_answers_the_rest(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release(world)
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    settings = Settings.model_validate(
        world.settings.model_dump(round_trip=True) | {"deploy_target": "kubernetes", "serving_namespace": "models"}
    )
    found = lineage(Archive.open(settings, MODEL), "production")

    assert found.serving is not None
    assert found.serving.answers is None
    assert any("its Deployment was not looked at: no kubeconfig" in note for note in found.notes)
    assert capsys.readouterr().out == ""


def test_a_persons_words_are_shown_whole_and_a_gates_are_not_cut_inside_a_bracket(world: World) -> None:
    run, version = register_version(world)
    gate = "auc gained (of 0.91; within noise); latency is 3 ms"
    checks = [CHECK.model_dump(mode="json")]

    def say(state: State, reason: str, **evidence: Any) -> None:
        world.ledger.append(
            MODEL, state, version=version, run_id=run, workflow="w", by="ann", reason=reason, evidence=evidence,
            after=world.ledger.head(MODEL), at=NOW,
        )  # fmt: skip

    say(State.AWAITING, gate, checks=checks, decision="awaiting-approval", expires=moment_text(NOW + timedelta(days=1)))
    words = "seen with risk team; ticket 4711"
    say(State.APPROVED, words, approval={"name": "ann"}, expires=moment_text(NOW + timedelta(days=1)))

    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(render(ask(world, "1")))
    text = console.export_text()
    assert text.count(words) == 2, "in what let it through, and in the history"
    assert ": auc gained (of 0.91; within noise)  " in text
    assert "latency" not in text
    assert short("no end (of; it") == "no end (of; it"
