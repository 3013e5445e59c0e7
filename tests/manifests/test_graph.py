"""The graph: what runs after what, who gets which secrets, and what no container may do."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from contracts import names
from contracts.access import ACCESS
from contracts.names import RELEASE, RETRAIN
from contracts.pipeline import load_pipeline, parse_pipeline
from contracts.probes import PROBES
from contracts.settings import desk, secret_fields, sizes, variable
from contracts.stages import STAGES, Features, Need, Parameters, Stage, choices, contract
from workflows.graph import CANDIDATES, MODEL, run, workflow_template
from workflows.stages import BRACE, argument, container

ROOT = Path(__file__).parents[2]
ADULT = (ROOT / "adult.yaml").read_text(encoding="utf-8")
STEPS: tuple[type[Stage], ...] = (*STAGES, *PROBES)
Template = dict[str, Any]


def tasks(template: Template) -> dict[str, Any]:
    listed = template["dag"]["tasks"] if "dag" in template else [step for group in template["steps"] for step in group]
    return {task["name"]: task for task in listed}


def arguments(task: dict[str, Any]) -> dict[str, str]:
    return {p["name"]: p["value"] for p in task["arguments"]["parameters"]}


def environment(template: Template) -> dict[str, Any]:
    return {variable["name"]: variable for variable in template["container"]["env"]}


def test_retrain_runs_its_stages_one_after_the_other(templates: dict[str, Template]) -> None:
    depends = {name: task.get("depends") for name, task in tasks(templates[RETRAIN]).items()}
    probes = [probe.name for probe in PROBES]
    way = [name for name in depends if name not in probes]

    then = {name: task.get("depends") for name, task in tasks(templates[MODEL]).items()}
    assert way == ["preflight", "ingest", "features", CANDIDATES, MODEL]
    assert list(then) == ["train", "evaluate", "register", RELEASE]
    for graph, way_ in ((depends, way), (then, list(then))):
        assert [graph[name] for name in way_[1:]] == [f"{before}.Succeeded" for before, _ in pairwise(way_)]
    assert list(depends)[: len(probes)] == probes
    assert [depends[name] for name in probes] == [None] * len(probes)


def test_nothing_follows_a_graph_that_has_ended_but_another_graph(templates: dict[str, Template]) -> None:
    """On its way up from a stage that failed, `argo retry` opens every group that it meets, ended or not."""
    for graph in templates.values():
        if "dag" not in graph:
            continue
        groups = {t["name"] for t in graph["dag"]["tasks"] if "withParam" in t or "dag" in templates[t["template"]]}
        for task in graph["dag"]["tasks"]:
            after = {name for name in groups if f"{name}." in task.get("depends", "")}
            assert not after or task["name"] in groups, f"{task['name']} follows {after}"


def test_preflight_waits_for_every_probe_however_it_ends_and_hears_each(templates: dict[str, Template]) -> None:
    preflight = tasks(templates[RETRAIN])["preflight"]

    for probe, heard in zip(PROBES, arguments(preflight)["found"].splitlines(), strict=True):
        assert f"({probe.name}.Succeeded || {probe.name}.Failed || {probe.name}.Errored)" in preflight["depends"]
        said = f"get(get(get(tasks['{probe.name}'], 'outputs'), 'parameters'), 'found')"
        assert heard == f"{{{{={said} ?? ''}}}}"  # not by a path: Argo would wait for one that says nothing
    assert preflight["depends"].count("&&") == len(PROBES) - 1


def test_candidates_are_a_pod_each_as_many_at_once_as_the_file_says(templates: dict[str, Template]) -> None:
    fan_out, task = templates[CANDIDATES], tasks(templates[RETRAIN])[CANDIDATES]
    [fit] = tasks(fan_out).values()

    assert fan_out["parallelism"] == 4
    assert (fit["template"], fit["withParam"]) == ("fit", "{{inputs.parameters.candidates}}")
    assert arguments(fit)["candidate"] == "{{item}}"
    assert arguments(task)["candidates"] == "{{tasks.features.outputs.parameters.candidates}}"
    assert fan_out["outputs"]["parameters"] == [
        {
            "name": "fits", "description": "URIs, as a JSON list.",
            "valueFrom": {"parameter": "{{tasks.fit.outputs.parameters.fit}}", "default": "[]"},
        }
    ]  # fmt: skip
    assert arguments(tasks(templates[RETRAIN])[MODEL])["fits"] == "{{tasks.candidates.outputs.parameters.fits}}"
    assert arguments(tasks(templates[MODEL])["train"])["fits"] == "{{inputs.parameters.fits}}"
    two = parse_pipeline(ADULT.replace("training:\n", "training:\n  parallel: 2\n"))
    compiled = workflow_template(two, "c").to_dict()["spec"]["templates"]
    assert next(template for template in compiled if template["name"] == CANDIDATES)["parallelism"] == 2


def test_a_deploy_ends_within_half_an_hour_unless_its_release_is_gradual(templates: dict[str, Template]) -> None:
    canary = parse_pipeline(ADULT + "release: {strategy: canary}\n")
    gradual = {each["name"]: each for each in workflow_template(canary, "c").to_dict()["spec"]["templates"]}
    assert templates["deploy"]["activeDeadlineSeconds"] == 1800
    assert gradual["deploy"]["activeDeadlineSeconds"] == 6 * 3600
    assert {name for name, each in gradual.items() if each.get("activeDeadlineSeconds") == 6 * 3600} == {
        name for name, each in templates.items() if each.get("activeDeadlineSeconds") == 6 * 3600
    } | {"deploy"}


def test_only_a_passed_model_is_registered_and_only_a_registered_one_released(templates: dict[str, Template]) -> None:
    register, release = tasks(templates[MODEL])["register"], tasks(templates[MODEL])[RELEASE]

    assert register["when"] == "'{{tasks.evaluate.outputs.parameters.verdict}}' == 'passed'"
    assert release["depends"] == "register.Succeeded"  # a skipped register omits it; a bare name would not


def test_release_builds_only_what_was_decided_for(templates: dict[str, Template]) -> None:
    release = tasks(templates[RELEASE])

    decision = "'{{tasks.promote.outputs.parameters.decision}}'"
    assert release["build"]["when"] == f"{decision} == 'approved' || {decision} == 'unchanged'"
    assert release["kaniko"]["when"] == "'{{tasks.build.outputs.parameters.destination}}' != ''"
    assert release["deploy"]["depends"] == "build.Succeeded && (kaniko.Succeeded || kaniko.Skipped)"


def test_release_is_an_entry_point_that_takes_a_version(spec: dict[str, Any], templates: dict[str, Template]) -> None:
    """`argo submit --entrypoint release -p version=12`: arguments reach an entry template by name."""
    given = {parameter["name"] for parameter in spec["arguments"]["parameters"]}
    wanted = {parameter["name"]: parameter.get("default") for parameter in templates[RELEASE]["inputs"]["parameters"]}

    assert wanted == {"version": None, "requested-by": "", "entrypoint": RELEASE}
    assert wanted.keys() - given == {"entrypoint"}, "nobody says it from outside; `retrain` says so itself"


def test_the_lock_is_on_retrain_alone(spec: dict[str, Any], templates: dict[str, Template]) -> None:
    assert "synchronization" not in spec
    locked = {name for name, template in templates.items() if "synchronization" in template}
    assert locked == {RETRAIN}
    assert templates[RETRAIN]["synchronization"] == {"mutexes": [{"name": "retrain-adult-income"}]}


def test_every_tag_of_another_task_way_an_output_of_a_task_before_it(templates: dict[str, Template]) -> None:
    for template in (templates[RETRAIN], templates[RELEASE]):
        before: list[str] = []
        for task in tasks(template).values():
            for source, field in re.findall(r"tasks\.([a-z]+)\.outputs\.parameters\.([a-z0-9-]+)", json.dumps(task)):
                assert source in before
                assert field in {p["name"] for p in templates[source]["outputs"]["parameters"]}
            before.append(task["name"])


def test_every_task_gives_each_required_input_and_no_other(templates: dict[str, Template]) -> None:
    for name in (RETRAIN, RELEASE, "finish"):
        for task in tasks(templates[name]).values():
            wanted = {p["name"]: p for p in templates[task["template"]]["inputs"]["parameters"]}
            assert set(arguments(task)) <= set(wanted)
            assert {n for n, p in wanted.items() if "default" not in p} <= set(arguments(task))


def test_an_input_that_comes_from_nowhere_is_refused() -> None:
    with pytest.raises(LookupError, match="nothing gives features its dataset"):
        run({}, Features)


@pytest.mark.parametrize("stage", STEPS, ids=lambda stage: stage.name)
def test_a_containers_parameters_are_the_stages_fields(stage: type[Stage], templates: dict[str, Template]) -> None:
    template = templates[stage.name]
    inputs = {p["name"]: p for p in template["inputs"]["parameters"]}

    assert list(inputs) == [names.parameter(field) for field in stage.Inputs.model_fields]
    for field, info in stage.Inputs.model_fields.items():
        declared = inputs[names.parameter(field)]
        assert ("default" in declared) != info.is_required()
        assert tuple(declared.get("enum", ())) == choices(stage.Inputs, field)
        assert declared.get("description") == info.description
    assert template["container"]["args"] == [
        stage.name,
        *(f"--{name}={argument(name)}" for name in inputs),
    ]
    assert {p["name"]: p["valueFrom"]["path"] for p in template["outputs"]["parameters"]} == {
        names.parameter(field): f"{names.OUTPUTS_MOUNT}/{names.parameter(field)}"
        for field in stage.Outputs.model_fields
    }


@pytest.mark.parametrize("stage", STEPS, ids=lambda stage: stage.name)
def test_a_stage_sees_only_the_secrets_it_needs(stage: type[Stage], templates: dict[str, Template]) -> None:
    references = {
        name: var["valueFrom"]["secretKeyRef"]
        for name, var in environment(templates[stage.name]).items()
        if "valueFrom" in var
    }
    secrets = set(references)

    assert {reference["name"] for reference in references.values()} <= {f"retrain-{stage.account}-secrets"}
    assert secrets == {variable(field) for field in ACCESS[stage.account].secrets}
    assert stage.needs <= ACCESS[stage.account].needs
    assert (variable("ledger") in secrets) == (Need.LEDGER in stage.needs)


def test_every_secret_setting_reaches_some_stage() -> None:
    assert {field for access in ACCESS.values() for field in access.secrets} == set(secret_fields())


def test_a_sources_dsn_reaches_only_those_who_read_the_source() -> None:
    source = "source:\n  uri: 'sql:'\n  query: select * from t order by id\n  dsn_secret: CHURN_DSN\n"
    pipeline = parse_pipeline(ADULT.replace('source:\n  uri: data/adult.csv\n  csv: {missing: ["?"]}\n', source))
    with_dsn = {
        stage.name
        for stage in STEPS
        if any(getattr(e, "name", "") == "CHURN_DSN" for e in container(stage, pipeline).env)
    }

    assert with_dsn == {"preflight-ingest", "ingest"}


def test_no_stage_has_privileges_or_a_token_it_does_not_need(templates: dict[str, Template]) -> None:
    for stage in STEPS:
        template = templates[stage.name]
        context = template["container"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert template["automountServiceAccountToken"] is (stage.account in ("deploy", "promote", "notify"))
        assert template["serviceAccountName"] == f"retrain-{stage.account}"
        assert template["metadata"]["labels"] == {names.LABEL_STAGE: stage.account}
        assert template["executor"] == {"serviceAccountName": names.EXECUTOR_SERVICE_ACCOUNT}
        assert template["activeDeadlineSeconds"] == stage.deadline_seconds
        written = {mount["mountPath"] for mount in template["container"]["volumeMounts"] if not mount.get("readOnly")}
        assert written == {names.OUTPUTS_MOUNT, names.SCRATCH_MOUNT, "/tmp"}


def test_no_parameter_is_pasted_where_kubernetes_would_read_a_reference_in_it(templates: dict[str, Template]) -> None:
    """`$(NAME)` in `command`, `args` and `env` is replaced by what the container's environment holds, secrets too."""
    harmless = {"{{workflow.name}}", *(argument(f"{what}-image", "workflow") for what in ("steps", "serving"))}
    for template in templates.values():
        container = template.get("container", {})
        pasted = [*container.get("command", ()), *container.get("args", ())]
        pasted += [entry["value"] for entry in container.get("env", ()) if "value" in entry]
        tags = {tag for text in pasted for tag in re.findall(r"\{\{.*?\}\}", text)}
        inputs = [parameter["name"] for parameter in template.get("inputs", {}).get("parameters", ())]

        assert tags - harmless <= {argument(name) for name in inputs}
        assert not container or environment(template)[BRACE.name]["value"] == "{"


def test_every_stage_that_fails_can_leave_its_report_for_notify() -> None:
    assert all(Need.STORE in stage.needs for stage in STEPS)


def test_memory_grows_with_the_attempt_and_the_request_stays(templates: dict[str, Template]) -> None:
    patch = json.loads(templates["train"]["podSpecPatch"])

    [main] = patch["containers"]
    assert main["name"] == "main"
    assert main["resources"] == {
        "requests": {
            "cpu": "{{=asInt(workflow.parameters['train-cpu'])}}m",
            "memory": "{{=asInt(workflow.parameters['train-memory'])}}Mi",
        },
        "limits": {"memory": "{{=asInt(workflow.parameters['train-memory']) * min(2 ** asInt(retries), 4)}}Mi"},
    }


def test_what_differs_between_environments_comes_from_one_configmap_that_the_desk_fills(spec: dict[str, Any]) -> None:
    keys = {
        p["valueFrom"]["configMapKeyRef"]["key"] for p in spec["arguments"]["parameters"] if "valueFrom" in p
    }  # fmt: skip

    assert set(sizes()) <= keys
    assert keys <= set(desk(Path("/home/a/.retrain"), Path("/home/a")))  # Argo ignores a default there


def test_a_size_in_the_file_replaces_the_environments() -> None:
    pipeline = parse_pipeline(ADULT + "resources: {train: {memory_mib: 4096, cpu_millicores: 3000}}\n")
    spec = workflow_template(pipeline, "c").to_dict()["spec"]
    parameters = {p["name"]: p for p in spec["arguments"]["parameters"]}

    assert parameters["train-memory"]["value"] == "4096"
    assert parameters["train-cpu"]["value"] == "3000"
    assert "valueFrom" in parameters["ingest-memory"]


def test_the_runs_parameters_are_those_of_the_contract(spec: dict[str, Any]) -> None:
    given = {p["name"]: p for p in spec["arguments"]["parameters"] if "valueFrom" not in p}

    assert set(given) == {names.parameter(field) for field in Parameters.model_fields}
    assert given["cache"]["enum"] == ["use", "refuse"]
    assert given["as-of"]["value"] == "{{workflow.creationTimestamp.RFC3339}}"


def test_the_exit_handler_hears_of_every_global_output(spec: dict[str, Any], templates: dict[str, Template]) -> None:
    told = json.dumps(templates[spec["onExit"]])
    outputs = (p for template in templates.values() for p in template.get("outputs", {}).get("parameters", ()))
    published = {p["globalName"] for p in outputs if "globalName" in p}

    assert {name for name in published if f"['{name}']" not in told} == {"version"}
    assert "{{=workflow.outputs?.parameters?.version ?? workflow.parameters.version}}" in told


def test_kaniko_is_whole_though_the_desk_never_runs_it(templates: dict[str, Template]) -> None:
    kaniko = templates["kaniko"]

    assert kaniko["container"]["command"] == ["/kaniko/executor"]
    assert f"--context={argument('context')}" in kaniko["container"]["args"]
    environment = {each["name"]: each.get("value") for each in kaniko["container"]["env"]}
    [logins] = [each for each in kaniko["volumes"] if "secret" in each]
    assert {"name": logins["name"], "mountPath": environment["DOCKER_CONFIG"], "readOnly": True} in kaniko["container"][
        "volumeMounts"
    ]
    assert (logins["secret"]["secretName"], logins["secret"]["optional"]) == (names.REGISTRY_SECRET, True)
    [image] = kaniko["outputs"]["parameters"]
    assert f"--image-name-with-digest-file={image['valueFrom']['path']}" in kaniko["container"]["args"]


def test_no_manifest_way_an_output_that_argo_never_resolves(compiled: dict[str, str]) -> None:
    """`outputs.result` of a skipped task hangs a workflow without a word (argo-workflows 16982)."""
    assert not any("outputs.result" in text for text in compiled.values())


def test_the_template_of_the_shipped_file_is_named_after_it() -> None:
    pipeline = load_pipeline(ROOT / "adult.yaml")

    assert workflow_template(pipeline, "c").to_dict()["metadata"]["name"] == pipeline.name


def test_argos_own_containers_are_as_restricted_as_ours(spec: dict[str, Any]) -> None:
    patch = json.loads(spec["podSpecPatch"])

    assert [c["name"] for c in (*patch["initContainers"], *patch["containers"])] == ["init", "wait"]
    for each in (*patch["initContainers"], *patch["containers"]):
        assert each["securityContext"]["allowPrivilegeEscalation"] is False
        assert each["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_preflight_is_told_which_stages_the_template_was_compiled_for(templates: dict[str, Template]) -> None:
    told = {
        name: environment(template)["RETRAIN_CONTRACT"]["value"]
        for name, template in templates.items()
        if "container" in template and "RETRAIN_CONTRACT" in environment(template)
    }

    assert told == {"preflight": contract()}
