"""`retrain submit`: what is refused before anything reaches a cluster, and what a Workflow object becomes here."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import shlex
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import typer
import yaml
from rich.console import Console
from typer.testing import CliRunner

from contracts import commands, confinement, names
from contracts.commands import where
from contracts.errors import CONFIG, ConfigError, DataError, NetworkError
from contracts.outcomes import Outcome
from contracts.pipeline import Pipeline, load_pipeline, parse_pipeline
from steps.waiting import Waited
from workflows.cli import doctor
from workflows.cli.display import Progress, result, stage_nodes
from workflows.cli.main import app
from workflows.cli.summary import Gate, Records, Summary, exit_code, show, summarise
from workflows.cluster import archive, runs, submission
from workflows.cluster.connection import Namespace
from workflows.compile import WORKFLOW_TEMPLATE, compile_pipeline
from workflows.local import state

ADULT = Path(__file__).resolve().parents[2] / "adult.yaml"


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    return dict(yaml.safe_load(compile_pipeline(ADULT)[WORKFLOW_TEMPLATE]))


def test_parameters_that_fit_are_taken(template: dict[str, Any]) -> None:
    submission.check(
        {
            "source": "s3://b/x.csv",
            "as-of": "2026-11-24T00:00:00Z",
            "cache": "refuse",
            "version": "",
            "train-cpu": "500",
        },
        template,
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cache", "sometimes", "'use' or 'refuse'"),
        ("version", "seven", "integer"),
        ("version", "0", "greater than or equal to 1"),
        ("as-of", "yesterday", "datetime"),
        ("train-memory", "4Gi", "a whole number"),
        ("train-memory", "-1", "a whole number"),
        ("trian-memory", "4096", "is no parameter of this pipeline"),
    ],
)
def test_a_parameter_that_does_not_fit_is_told_before_anything_is_sent(
    name: str, value: str, says: str, template: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as refused:
        submission.check({name: value}, template)

    [finding] = refused.value.findings
    assert name in finding.where
    assert says in str(finding)


def test_every_wrong_parameter_is_told_at_once(template: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as refused:
        submission.check({"cache": "x", "version": "x", "nothing": "x"}, template)

    assert len(refused.value.findings) == 3


# what only this machine has


def pipeline_of(uri: str | list[str]) -> Pipeline:
    content = yaml.safe_load(ADULT.read_text()) | {"source": {"uri": uri}}
    return parse_pipeline(yaml.safe_dump(content), "adult.yaml")


def test_the_files_own_source_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("age\n1\n")

    assert submission.local_source("", tmp_path / "p.yaml", pipeline_of("people.csv")) == tmp_path / "people.csv"


def test_a_given_source_lies_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "people.csv").write_text("age\n1\n")
    monkeypatch.chdir(tmp_path)

    assert submission.local_source("people.csv", ADULT, load_pipeline(ADULT)) == tmp_path / "people.csv"
    assert submission.local_source((tmp_path / "people.csv").as_uri(), ADULT, load_pipeline(ADULT))


@pytest.mark.parametrize("uri", ["s3://b/x.csv", "https://h/x.csv", "python:rows:batches", "{{secret:URL}}"])
def test_what_the_cluster_reads_itself_is_not_brought_there(uri: str) -> None:
    assert submission.local_source("", ADULT, pipeline_of(uri)) is None


@pytest.mark.parametrize("uri", [["a.csv", "b.csv"], "day/*.csv", "{{as_of:%Y}}.csv", "missing.csv"])
def test_a_source_that_is_no_single_file_here_is_refused(uri: str | list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"more than one file|no such file"):
        submission.local_source("", tmp_path / "p.yaml", pipeline_of(uri))


# the kubeconfig

KUBECONFIG = {
    "apiVersion": "v1", "kind": "Config", "current-context": "one",
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {}}],
    "contexts": [
        {"name": "one", "context": {"cluster": "c", "user": "u"}},
        {"name": "two", "context": {"cluster": "c", "user": "u", "namespace": "mlops"}},
    ],
}  # fmt: skip


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(KUBECONFIG))
    # read once, when the client is imported
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))


@pytest.mark.parametrize(
    ("namespace", "context", "found"),
    [("", "", ("default", "one")), ("x", "", ("x", "one")), ("", "two", ("mlops", "two")), ("x", "two", ("x", "two"))],
)
@pytest.mark.usefixtures("kubeconfig")
def test_context_and_namespace_are_found_as_kubectl_finds_them(
    namespace: str, context: str, found: tuple[str, str]
) -> None:
    connected = Namespace.connect(namespace, context)

    assert (connected.namespace, connected.context) == found


@pytest.mark.usefixtures("kubeconfig")
def test_a_context_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="no context 'three'") as refused:
        Namespace.connect("", "three")

    assert refused.value.remedy == "one of one, two"


def test_the_options_that_show_a_run_again() -> None:
    assert where("mlops", "") == "-n mlops "
    assert where("mlops", "prod") == "-n mlops --context prod "


@pytest.mark.parametrize("options", ["", where("mlops", "prod")])
def test_the_commands_that_messages_name_are_commands(options: str) -> None:
    group = typer.main.get_command(app)
    decide = commands.decide("churn-1", options).replace(" (or reject)", "")
    for line in (commands.look("churn-1", options), decide, commands.release(3, where("mlops"))):
        name, *words = shlex.split(line)[1:]
        parsed = group.commands[name].make_context(name, words).params  # type: ignore[attr-defined]
        assert parsed["namespace"] == ("mlops" if "-n" in line else "")
        assert parsed.get("version", 3) == 3


def test_what_a_person_said_is_whole_in_a_runs_summary() -> None:
    console = Console(record=True, width=200)
    said = Gate(decision="approved", reason="approved by ann: seen with risk team; ticket 4711", checks=())
    show(
        Summary(workflow="churn-1", pipeline="churn", phase="Succeeded", outcome=Outcome.PROMOTED, promotion=said),
        console,
    )
    assert "seen with risk team; ticket 4711" in console.export_text()


def test_a_run_that_waits_for_a_person_names_commands_that_find_it() -> None:
    console = Console(record=True, width=200)
    summary = Summary(
        workflow="churn-2", pipeline="churn", phase="Succeeded", outcome=Outcome.AWAITING_APPROVAL, version=3
    )  # by an unchanged run: the request is that of the run before it
    show(summary, console, where("mlops", "prod"))

    said = console.export_text()
    assert "retrain review -n mlops --context prod churn@3" in said
    assert "retrain approve -n mlops --context prod churn@3 --reason" in said


@pytest.mark.parametrize(
    ("options", "named"),
    [(where("mlops"), "-n serving "), (where("mlops", "prod"), "-n serving --context prod "), ("", None)],
)
def test_a_server_in_a_cluster_is_shown_with_the_way_to_it_from_outside(options: str, named: str | None) -> None:
    console = Console(record=True, width=200)
    url = "http://churn.serving"
    summary = Summary(
        workflow="churn-1",
        pipeline="churn",
        phase="Succeeded",
        outcome=Outcome.PROMOTED,
        url=url,
        curl=f"curl -s {url}/x",
    )
    show(summary, console, options)

    [*_, curl, last] = console.export_text().splitlines()
    way = f"kubectl port-forward {named}service/churn 8080:80, and http://localhost:8080 in place of {url}"
    assert (way in last) if named else (last == summary.curl)
    assert named is None or summary.curl in curl


def test_a_release_that_was_cut_off_is_taken_over_by_the_command_that_doctor_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = archive.Agreement(
        model="churn", entries=3, broken=[], given=0, doubtful=[], vouched=[], serving=None, releasing=3,
        releasing_in="churn-1", alias=None, answers=None,
    )  # fmt: skip
    monkeypatch.setattr(archive, "agreements", lambda _: [one])
    monkeypatch.setattr(runs, "find", lambda _: [])

    [line] = [line for line in doctor._records(Namespace("mlops", "prod")) if line.what == "churn release"]
    assert "`retrain submit FILE -n mlops --entrypoint release --version 3`" in line.remedy


def test_doctor_names_an_alias_that_is_not_where_the_ledger_says_and_who_approved_with_nobody_to_vouch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = archive.Agreement(
        model="churn", entries=9, broken=[], given=2, doubtful=["ann"], vouched=[], serving=3, releasing=None,
        releasing_in="", alias=2, answers=3,
    )  # fmt: skip
    monkeypatch.setattr(archive, "agreements", lambda _: [one])
    monkeypatch.setattr(runs, "find", lambda _: [])

    lines = {line.what: (line.state, line.found) for line in doctor._records(Namespace("mlops", "prod"))}
    assert lines == {
        "churn ledger": ("ok", "9 entries, chain intact"),
        "churn approvals": ("note", "1 of 2 are by names that nobody vouched for: ann"),
        "churn alias": ("wrong", "ledger: 3 serves; MLflow's alias production: 2"),
        "churn server": ("ok", "version 3 answers"),
    }


def test_a_stage_alone_is_of_the_newest_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRAIN_HOME", str(tmp_path))
    for name, hour in (("churn-1", "01"), ("churn-2", "02")):
        run = runs.run_state(workflow(nodes=NODES))
        run = run._replace(name=name, created=datetime.fromisoformat(f"2026-11-24T{hour}:00:00Z"))
        log = state.log_path(tmp_path, name, run.nodes["r-2"])
        log.parent.mkdir(parents=True)
        log.write_text(f"of {name}\n")
        state.StateFile(tmp_path, name).write(run)

    done = CliRunner().invoke(app, ["logs", "ingest"])
    assert (done.exit_code, done.output) == (0, "ingest(0): of churn-2\n")


def test_a_namespace_without_runs_and_platform_has_no_platform() -> None:
    class Empty(Namespace):
        def select(self, *_: Any) -> list[dict[str, Any]]:
            return []

        def get(self, *_: Any) -> None:
            return None

    with pytest.raises(ConfigError, match="namespace nosuchns of prod has no platform"):
        runs.load(Empty("nosuchns", "prod"))


def test_a_parameter_that_only_a_manifest_takes_names_the_options_of_a_pipeline() -> None:
    done = CliRunner().invoke(app, ["run", str(ADULT), "-p", "nosuch=1"])
    assert done.exit_code == 2
    assert "--as-of" in done.output


def test_doctor_of_a_cluster_says_nothing_of_this_desk(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_desk(*_: Any, **__: Any) -> None:
        raise AssertionError("the desk was looked at")

    monkeypatch.setattr(doctor, "_home", no_desk)
    found = doctor.Line(what="platform", state="ok", found="mlops of prod")
    monkeypatch.setattr(doctor, "_cluster", lambda *_: [found])

    done = CliRunner().invoke(app, ["doctor", "-n", "mlops", "--json"])
    assert done.exit_code == 0
    assert [line["what"] for line in json.loads(done.output)] == ["python", "argo", "platform"]
    assert CliRunner().invoke(app, ["doctor", "-n", "mlops", "--mend"]).exit_code == 2


@pytest.mark.parametrize(
    ("serving", "policy", "state"),
    [
        ("mlops", "ours", "ok"),
        ("mlops", "weaker", "note"),
        ("mlops", "none", "note"),
        ("mlops", "unseen", "note"),
        ("ml-serving", "none", "ok"),
        ("ml-serving", "ours", "ok"),
    ],
)
def test_doctor_says_what_keeps_deploy_from_the_keys_of_others(serving: str, policy: str, state: str) -> None:
    made = {each["kind"]: copy.deepcopy(each) for each in confinement.policy_objects(serving)}
    if policy == "weaker":
        del made["ValidatingAdmissionPolicy"]["spec"]["validations"][2]

    class Known(Namespace):
        settings: ClassVar = {"RETRAIN_SERVING_NAMESPACE": serving}

        def get(self, kind: str, name: str) -> Any:
            if policy == "unseen":
                raise ConfigError("the cluster refused to get it")
            found = made[kind]
            return found if policy != "none" and name == found["metadata"]["name"] else None

    line = doctor._confinement(Known("mlops", "prod"))
    assert line.state == state
    assert ("kind/deploy-policy.yaml" in line.remedy) == (state == "note")
    assert ("ml-serving" in line.found) == ((serving, policy) == ("ml-serving", "none"))


@pytest.mark.parametrize(
    "words",
    [["--entrypoint", "deploy"], ["--entrypoint", "release"], ["--version", "3"], ["-p", "train-memory"]],
)
def test_options_that_do_not_go_together_are_refused_as_by_run(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["submit", str(ADULT), *words]).exit_code == 2


# a Workflow object

NODES = {
    "r": {
        "id": "r", "name": "r", "displayName": "r", "type": "DAG", "templateName": "retrain", "templateScope": "local/",
        "phase": "Failed", "startedAt": "2026-11-24T20:04:56Z", "finishedAt": None, "children": ["r-1"],
    },
    "r-1": {
        "id": "r-1", "name": "r.ingest", "displayName": "ingest", "type": "Retry", "templateName": "ingest",
        "templateScope": "local/", "phase": "Failed", "message": "No more retries left", "boundaryID": "r",
        "startedAt": "2026-11-24T20:04:56Z", "finishedAt": "2026-11-24T20:05:56Z", "children": ["r-2"],
        "inputs": {"parameters": [{"name": "source", "value": "s3://b/x.csv"}, {"name": "code", "default": ""}]},
        "outputs": {"parameters": [{"name": "summary", "valueFrom": {"path": "/x"}}], "exitCode": "65"},
    },
    "r-2": {
        "id": "r-2", "name": "r.ingest(0)", "displayName": "ingest(0)", "type": "Pod", "templateName": "ingest",
        "phase": "Failed", "message": "main: Error (exit code 65)", "boundaryID": "r",
        "startedAt": "2026-11-24T20:04:56Z", "finishedAt": "2026-11-24T20:05:56Z", "nodeFlag": {"retried": True},
        "outputs": {"artifacts": [{"name": "main-logs", "s3": {"key": "logs/r/r-2/main.log"}}]},
    },
}  # fmt: skip


def workflow(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "r", "uid": "u", "creationTimestamp": "2026-11-24T20:04:49Z"},
        "spec": {"workflowTemplateRef": {"name": "adult-income"}, "arguments": {}},
        "status": {"phase": "Failed", "startedAt": "2026-11-24T20:04:56Z", "finishedAt": None, **status},
    }


def test_a_workflow_object_reads_as_the_state_of_a_run() -> None:
    run = runs.run_state(workflow(nodes=NODES))

    assert (run.pipeline, run.phase, run.finished) == ("adult-income", "Failed", None)
    ingest = stage_nodes(run)["ingest"]
    assert ingest.inputs == {"source": "s3://b/x.csv"}
    assert result(run, ingest) == "data: main: Error (exit code 65)"
    assert state.from_json(state.to_json(run)) == run


def gone_wrong(template: str, message: str) -> state.RunState:
    """A run in which a stage failed in its only attempt."""
    around = {**NODES["r-1"], "name": f"r.{template}", "displayName": template, "templateName": template}
    attempt = {**NODES["r-2"], "name": f"r.{template}(0)", "templateName": template, "message": message}
    return runs.run_state(workflow(nodes={"r-1": around, "r-2": attempt}, finishedAt="2026-11-24T20:05:57Z"))


def records(waited: Waited | None) -> Records:
    return Records("s3://b", lambda _uris: {}, lambda _url: {}, lambda node: waited if node == "r-2" else None)


NO_ROOM = "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."
FIT = {**NODES["r-1"], "templateName": "fit", "phase": "Running", "message": "", "finishedAt": None, "outputs": {}}


def waiting(*messages: str) -> state.RunState:
    """A run whose candidates' pods have not begun."""
    nodes = {"g": {**FIT, "id": "g", "type": "TaskGroup", "displayName": "fit", "children": []}}
    for index, message in enumerate(messages):
        around, pod = f"f{index}", f"p{index}"
        nodes["g"]["children"].append(around)
        nodes[around] = {**FIT, "id": around, "displayName": f"fit({index}:x)", "children": [pod]}
        nodes[pod] = {
            **NODES["r-2"], "id": pod, "displayName": f"fit({index}:x)(0)", "templateName": "fit", "phase": "Pending",
            "message": message, "startedAt": "2026-11-24T20:05:00Z", "finishedAt": None, "outputs": {},
        }  # fmt: skip
    return runs.run_state(workflow(nodes=nodes, phase="Running"))


def test_a_stage_whose_pods_wait_for_a_node_says_so_in_status_and_while_it_is_followed() -> None:
    run = waiting(NO_ROOM, NO_ROOM)
    followed = StringIO()
    with Progress(Console(file=followed), followed) as progress:
        progress.update(waiting("PodInitializing", "PodInitializing"))
        progress.update(run)
        progress.update(run)

    assert result(run, stage_nodes(run)["fit"]) == NO_ROOM
    assert [line.split() for line in followed.getvalue().splitlines()] == [
        ["fit", "Running"],
        ["fit", "waits", *NO_ROOM.split()],
    ]


def test_the_log_of_a_pod_that_has_not_begun_says_why() -> None:
    class Place:
        def select(self, _kind: str, _labels: Any) -> list[dict[str, Any]]:
            annotations = {"workflows.argoproj.io/node-id": "p0"}
            return [{"metadata": {"name": "pod", "annotations": annotations}}]

    found = workflow(nodes=NODES | {"r-2": {**NODES["r-2"], "id": "p0", "phase": "Pending", "message": NO_ROOM}})
    assert list(runs.log_lines(Place(), found)) == [f"ingest(0): has not started: {NO_ROOM}"]  # type: ignore[arg-type]


def test_kaniko_that_failed_is_shown_and_is_class_network() -> None:
    run = gone_wrong("kaniko", "main: Error (exit code 1)")

    assert result(run, stage_nodes(run)["kaniko"]) == "network: main: Error (exit code 1)"
    [error] = summarise(run, records(None)).errors
    assert (error.stage, error.error_class, error.message) == ("kaniko", "network", "main: Error (exit code 1)")
    assert exit_code(summarise(run, records(None))) == 75


def test_what_a_pod_waited_for_is_said_of_a_run() -> None:
    run = gone_wrong("train", "Pod was active on the node longer than the specified deadline")
    found = summarise(run, records(Waited("couldn't find key token in Secret mlops/s", CONFIG)))

    [error] = found.errors
    assert (error.error_class, exit_code(found)) == ("config", 78)
    assert error.message == "its pod never began: couldn't find key token in Secret mlops/s"


def test_what_a_pod_writes_beside_its_answer_hides_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    class Place:
        settings: ClassVar = {"RETRAIN_STORE": "s3://store"}

    monkeypatch.setattr(
        "workflows.cluster.errand.errand",
        lambda *_, **__: 'a library warns\n{"s3://store/a": "{}", "s3://store/b": null}\n',
    )

    assert runs.records(Place()).read(["s3://store/a", "s3://store/b"]) == {"s3://store/a": b"{}"}  # type: ignore[arg-type]


def test_nodes_that_argo_packed_are_unpacked() -> None:
    packed = base64.b64encode(gzip.compress(json.dumps(NODES).encode())).decode()

    assert runs.run_state(workflow(compressedNodes=packed)) == runs.run_state(workflow(nodes=NODES))


def test_a_workflow_that_no_controller_has_seen_is_a_run_without_nodes() -> None:
    fresh = workflow()
    del fresh["status"]

    assert runs.run_state(fresh).nodes == {}


def test_a_log_is_looked_for_where_the_controller_keeps_it() -> None:
    repository = {"artifactRepository": {"s3": {"bucket": "retrain-store"}}}
    found = runs.archived_log(workflow(nodes=NODES, artifactRepositoryRef=repository), "r-2")

    assert found == "s3://retrain-store/logs/r/r-2/main.log"
    packed = base64.b64encode(gzip.compress(json.dumps(NODES).encode())).decode()
    assert runs.archived_log(workflow(compressedNodes=packed, artifactRepositoryRef=repository), "r-2") == found
    assert runs.archived_log(workflow(nodes=NODES), "r-2") == ""  # no repository


class Controlled:
    """A namespace whose controller reads its templates from a copy: each run finds what the copy holds next."""

    def __init__(self, *copies: str | None) -> None:
        self.copies, self.made, self.workflow = list(copies), 0, cast("dict[str, Any] | None", None)

    def create(self, wanted: dict[str, Any]) -> None:
        found = self.copies.pop(0) if len(self.copies) > 1 else self.copies[0]
        self.made += 1
        self.workflow = {**wanted, "status": {"phase": "Error" if found is None else "Running"}}
        if found:
            self.workflow["metadata"] = {**wanted["metadata"], "annotations": {names.ANNOTATION_TEMPLATE: found}}

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        assert (kind, name) == ("Workflow", "w")
        return self.workflow

    def delete(self, kind: str, name: str) -> None:
        assert (kind, name) == ("Workflow", "w")
        self.workflow = None


@pytest.mark.parametrize(("copies", "made"), [(("new",), 1), ((None, "old", "new"), 3)])
def test_a_run_that_found_another_template_or_none_is_started_again(copies: tuple[str | None, ...], made: int) -> None:
    cluster = Controlled(*copies)

    submission.start(cast("Namespace", cluster), "w", "p", "retrain", {}, "new")

    assert cluster.made == made
    assert cluster.workflow is not None


def test_a_template_that_was_there_is_not_looked_for() -> None:
    cluster = Controlled("as it was")

    submission.start(cast("Namespace", cluster), "w", "p", "retrain", {})

    assert cluster.made == 1


def test_a_controller_that_never_sees_the_template_leaves_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "_FOLLOWS_SECONDS", 0.2)
    cluster = Controlled("old")

    with pytest.raises(NetworkError, match="does not see the new template p"):
        submission.start(cast("Namespace", cluster), "w", "p", "retrain", {}, "new")

    assert cluster.workflow is None


def test_a_file_without_a_column_is_told_before_anything_goes_to_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "rows.csv").write_text("Age,income\n40,>50K\n")
    said = CliRunner().invoke(app, ["submit", str(ADULT), "--source", str(tmp_path / "rows.csv")])

    assert isinstance(said.exception, DataError), said.output
    missing = {finding.where: finding.remedy for finding in said.exception.findings}
    assert missing[f"{tmp_path / 'rows.csv'}, column age"] == "did you mean 'Age'?"
