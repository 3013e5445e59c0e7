"""The graph: one WorkflowTemplate with two ways in, `retrain` and `release`.  Called by `workflows.compile`.

    preflight-* - preflight - ingest - features (- fit-*) - model
                                                            train - evaluate - register - release
                                                                             promote - build (- kaniko) - deploy

Preflight's probes, one a duty, run side by side; `preflight` joins what they found, however they ended.  So do the
candidates, each fitted in a pod of its own, as many at once as the file says; `train` chooses.  Where the training is
there already, nothing is fitted.

What follows the candidates is a graph of its own, for the sake of `argo retry`: on its way up from a stage that failed,
Argo 4.0 opens every group that it meets, and waits for ever for one that had ended (argo-workflows 16450).

A rejection is an outcome: what follows is skipped or omitted, and the workflow succeeds.  `finish`, the exit handler,
tells how it ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hera.workflows import DAG, Container, Parameter, Step, Steps, Task, WorkflowTemplate
from hera.workflows.models import (
    ConfigMapVolumeSource,
    Mutex,
    Synchronization,
    TTLStrategy,
    ValueFrom,
    Volume,
    WorkflowMetadata,
)
from pydantic.fields import FieldInfo

from contracts import names
from contracts.access import KANIKO
from contracts.names import RELEASE, RETRAIN
from contracts.outcomes import Promotion, Verdict
from contracts.pipeline import Pipeline
from contracts.pipeline.operation import Resources
from contracts.probes import PROBES
from contracts.settings import size, variable
from contracts.stages import (
    SIZED,
    STAGES,
    Build,
    Deploy,
    Evaluate,
    Features,
    Fit,
    Ingest,
    Notify,
    Parameters,
    Preflight,
    Promote,
    Register,
    Stage,
    Train,
    choices,
    encode,
)
from workflows.kaniko import kaniko
from workflows.stages import argo_containers, container, from_settings

_KEPT_SECONDS = 30 * 86400
"""How long a run that has ended stays in the cluster, pods and all; ledger and MLflow know of it for good."""
_RUN_SECONDS = 3 * 86400
"""How long a run may take in all.  A stage's own deadline begins with its pod on a node; one that no node takes waits
for room, as long as this: Argo looks for it every 20 minutes, and not at all for a template's `timeout` under retries.
"""
FINISH, CANDIDATES, MODEL = "finish", "candidates", "model"
_FAN_OUT = {**{f: info for f, info in Fit.Inputs.model_fields.items() if f != "candidate"},
            "candidates": Features.Outputs.model_fields["candidates"]}  # fmt: skip
"""Inputs of the fan-out: those of each fit, and the list of candidates."""
_OF_MODEL = {f: info for f, info in Train.Inputs.model_fields.items() if f not in Parameters.model_fields}
"""Inputs of what follows it, beside what a run was given."""


def workflow_template(pipeline: Pipeline, configmap: str) -> WorkflowTemplate:
    """Build the template of one pipeline, whose file is mounted from `configmap`."""
    with WorkflowTemplate(
        name=pipeline.name,
        labels={names.LABEL_PIPELINE: pipeline.name},
        annotations={"workflows.argoproj.io/description": pipeline.description or f"Retrains {pipeline.name}."},
        entrypoint=RETRAIN,
        on_exit=FINISH,
        arguments=[*run_parameters(), *environment_parameters(pipeline)],
        pod_spec_patch=argo_containers(),
        volumes=[Volume(name="pipeline", config_map=ConfigMapVolumeSource(name=configmap))],
        workflow_metadata=WorkflowMetadata(labels={names.LABEL_PIPELINE: pipeline.name}),
        active_deadline_seconds=_RUN_SECONDS,
        ttl_strategy=TTLStrategy(seconds_after_completion=_KEPT_SECONDS),
    ) as template:
        templates = {stage.name: container(stage, pipeline) for stage in (*STAGES, *PROBES)}
        templates[KANIKO] = kaniko()
        release = _release(templates)
        _retrain(templates, _candidates(templates, pipeline), _model(templates, release), pipeline)
        _finish(templates)
    return template


def _retrain(templates: dict[str, Container], candidates: DAG, model: DAG, pipeline: Pipeline) -> None:
    # The lock is the template's, not the workflow's, so that `release` as an entry point takes none.  Argo may lose it
    # when the controller restarts; two runs at once then cost work, nothing else: the ledger decides, not the lock.
    lock = Synchronization(mutexes=[Mutex(name=f"retrain-{pipeline.name}")])
    with DAG(name=RETRAIN, synchronization=lock):
        checked = _preflight(templates)
        dataset = run(templates, Ingest, checked)
        split = run(templates, Features, dataset)
        fitted = Task(
            name=CANDIDATES,
            template=candidates,
            arguments=inputs_of(CANDIDATES, _FAN_OUT, dataset, split),
            depends=f"{split.name}.Succeeded",
        )
        Task(
            name=MODEL,
            template=model,
            arguments=inputs_of(MODEL, _OF_MODEL, dataset, split, fits=output(fitted, "fits")),
            depends=f"{fitted.name}.Succeeded",
        )


def _preflight(templates: dict[str, Container]) -> Task:
    probes = [run(templates, probe) for probe in PROBES]
    # One that never started has no outputs: Argo waits for ever for what it can read the name of, also behind `?.`.
    said = [
        f"{{{{=get(get(get(tasks['{probe.name}'], 'outputs'), 'parameters'), 'found') ?? ''}}}}" for probe in probes
    ]
    ended = [f"({probe.name}.Succeeded || {probe.name}.Failed || {probe.name}.Errored)" for probe in probes]
    return run(templates, Preflight, found="\n".join(said), depends=" && ".join(ended))


def _candidates(templates: dict[str, Container], pipeline: Pipeline) -> DAG:
    """Build the fan-out: a DAG of its own, since Argo bounds what runs at once by template."""
    given = {names.parameter(field): f"{{{{inputs.parameters.{names.parameter(field)}}}}}" for field in _FAN_OUT}
    fits = ValueFrom(parameter=f"{{{{tasks.{Fit.name}.outputs.parameters.fit}}}}", default="[]")
    with DAG(
        name=CANDIDATES,
        inputs=[Parameter(name=name) for name in given],
        outputs=[Parameter(name="fits", value_from=fits, description="URIs, as a JSON list.")],
        parallelism=pipeline.training.parallel,
    ) as candidates:
        items = given.pop("candidates")
        Task(
            name=Fit.name, template=templates[Fit.name], arguments={"candidate": "{{item}}", **given}, with_param=items
        )
    return candidates


def _model(templates: dict[str, Container], release: DAG) -> DAG:
    """Build what becomes of fitted candidates: a run, a verdict, and when it passed a version and its release."""
    with DAG(name=MODEL, inputs=[Parameter(name=names.parameter(field)) for field in _OF_MODEL]) as model:
        trained = run(
            templates, Train, **{field: f"{{{{inputs.parameters.{names.parameter(field)}}}}}" for field in _OF_MODEL}
        )
        verdict = run(templates, Evaluate, trained)
        version = run(templates, Register, trained, verdict, when=is_one_of(verdict, "verdict", Verdict.PASSED))
        Task(
            name=RELEASE,
            template=release,
            arguments={
                "version": output(version, "version"),
                "requested-by": workflow("requested-by"),
                "entrypoint": RETRAIN,
            },
            depends=f"{version.name}.Succeeded",
        )
    return model


def _release(templates: dict[str, Container]) -> DAG:
    parameters = [
        Parameter(name="version", description="The registered version to release."),
        Parameter(name="requested-by", default="", description="Who or what asked for it."),
        Parameter(name="entrypoint", default=RELEASE, description="By which way in; a person may have to approve."),
    ]
    with DAG(name=RELEASE, inputs=parameters) as release:
        decision = run(
            templates,
            Promote,
            version="{{inputs.parameters.version}}",
            requested_by="{{inputs.parameters.requested-by}}",
            entrypoint="{{inputs.parameters.entrypoint}}",
        )
        image = run(
            templates,
            Build,
            decision,
            version="{{inputs.parameters.version}}",
            when=is_one_of(decision, "decision", Promotion.APPROVED, Promotion.UNCHANGED),
        )
        built = Task(
            name=KANIKO,
            template=templates[KANIKO],
            arguments={
                names.parameter(field): output(image, field) for field in ("context", "destination", "plain_http")
            },
            depends=f"{image.name}.Succeeded",
            when=f"'{output(image, 'destination')}' != ''",
        )
        run(
            templates,
            Deploy,
            decision,
            image,
            version="{{inputs.parameters.version}}",
            # One of the two is empty: a skipped task's outputs are, and `build` names no image that is still to come.
            image=output(image, "image") + output(built, "image"),
            depends=f"{image.name}.Succeeded && ({built.name}.Succeeded || {built.name}.Skipped)",
        )
    return release


def _finish(templates: dict[str, Container]) -> None:
    # As expressions, since Argo refuses at submission a plain tag that the chosen entry point never sets.  What was not
    # set stays as literal text, which `notify` reads as empty.
    told = {
        name: f"{{{{=workflow.outputs.parameters['{name}']}}}}"
        for name in ("verdict", "decision", "outcome", "run-id", "url")
    }
    reports = " ".join(
        f"{{{{=workflow.outputs.parameters['{name}']}}}}" for name in ("validation-report", "promotion-report")
    )
    # The version that was registered, else the one that a release was asked for.
    version = "{{=workflow.outputs?.parameters?.version ?? workflow.parameters.version}}"
    given = {
        "status": "{{workflow.status}}",
        "failures": "{{workflow.failures}}",
        "version": version,
        "reports": reports,
    }
    given |= {name.replace("-", "_"): text for name, text in told.items()}
    # Steps, since a DAG that is an exit handler counts as failed as soon as the workflow is stopped, before its end.
    with Steps(name=FINISH):
        Step(
            name=Notify.name,
            template=templates[Notify.name],
            arguments=inputs_of(Notify.name, Notify.Inputs.model_fields, **given),
        )


def run(
    templates: dict[str, Container],
    stage: type[Stage],
    *upstream: Task,
    when: str | None = None,
    depends: str | None = None,
    **given: str,
) -> Task:
    """Add a stage to the open DAG, after the last task of `upstream` succeeded.

    Raises
    ------
    LookupError
        When a required input comes from nowhere; see `inputs_of`.
    """
    if depends is None and upstream:
        depends = f"{upstream[-1].name}.Succeeded"
    arguments = inputs_of(stage.name, stage.Inputs.model_fields, *upstream, **given)
    return Task(name=stage.name, template=templates[stage.name], arguments=arguments, depends=depends, when=when)


def inputs_of(name: str, fields: Mapping[str, FieldInfo], *upstream: Task, **given: str) -> dict[str, str]:
    """Return the arguments of a stage or a graph with such fields: parameter -> text.

    Each comes from `given`, else from the last upstream stage with an output of that name, else from the workflow's
    parameter of that name.

    Raises
    ------
    LookupError
        When a required input comes from nowhere.
    """
    arguments = {}
    for field, info in fields.items():
        source = next((t for t in reversed(upstream) if field in _stage(t).Outputs.model_fields), None)
        if field in given:
            arguments[names.parameter(field)] = given[field]
        elif source is not None:
            arguments[names.parameter(field)] = output(source, field)
        elif field in Parameters.model_fields:
            arguments[names.parameter(field)] = workflow(names.parameter(field))
        elif info.is_required():
            raise LookupError(f"nothing gives {name} its {field}")
    return arguments


def output(task: Task, field: str) -> str:
    """Return the tag of a task's output."""
    return f"{{{{tasks.{task.name}.outputs.parameters.{names.parameter(field)}}}}}"


def workflow(name: str) -> str:
    """Return the tag of a workflow parameter."""
    return f"{{{{workflow.parameters.{name}}}}}"


def is_one_of(task: Task, field: str, *values: str) -> str:
    """Return a `when` that holds for some values of a task's output; quoted, since Argo pastes text."""
    return " || ".join(f"'{output(task, field)}' == '{encode(value)}'" for value in values)


def run_parameters() -> Iterator[Parameter]:
    """Return what a person or trigger may say when a run starts."""
    for field, info in Parameters.model_fields.items():
        # Argo fills in the scheduled time only for a CronWorkflow, which says so itself; the others get their creation.
        value = "{{workflow.creationTimestamp.RFC3339}}" if field == "as_of" else encode(info.default)
        yield Parameter(
            name=names.parameter(field),
            value=value,
            enum=list(choices(Parameters, field)) or None,
            description=info.description,
        )


def environment_parameters(pipeline: Pipeline) -> Iterator[Parameter]:
    """Return what the environment says: images, the way of building, and the sizes that the file leaves open."""
    yield from_settings("steps-image", variable("steps_image"), "Image of the steps, by digest.")
    yield from_settings("serving-image", variable("serving_image"), "Image that serves versions, by digest.")
    yield from_settings("kaniko-image", variable("kaniko_image"), "Image that builds images.")
    for stage in SIZED:
        own = pipeline.resources.get(stage.name)
        for what, unit in (("memory", "MiB"), ("cpu", "millicores")):
            name, description = f"{stage.name}-{what}", f"{unit} of {stage.name}'s container."
            if own is None:
                yield from_settings(name, size(stage.name, what), description)
            else:
                yield Parameter(name=name, value=str(_size(own, what)), description=description)


def _size(resources: Resources, what: str) -> int:
    return resources.memory_mib if what == "memory" else resources.cpu_millicores


def _stage(task: Task) -> type[Stage]:
    return next(stage for stage in (*STAGES, *PROBES) if stage.name == task.name)
