"""Every stage, declared once: name, duty, typed inputs and outputs, what it may reach.

The container templates' parameters, the command line of ``python -m steps``, the check of submitted values and a page
of the docs are all derived from these classes.  A stage's function is ``steps.<step>.<step>``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum, StrEnum
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import Field, ValidationError

from contracts.base import Contract, Moment, Sha256
from contracts.errors import Finding
from contracts.names import parameter
from contracts.outcomes import Outcome, Promotion, Verdict

C = TypeVar("C", bound=Contract)


class Need(StrEnum):
    """What a stage may reach."""

    SOURCE = "source"
    STORE = "store"
    """Every stage: the report of one that failed is kept there for `notify`."""
    TRACKING = "tracking"
    LEDGER = "ledger"
    IMAGES = "images"
    SERVER = "server"
    HOSTS = "hosts"


class Cache(StrEnum):
    """Whether finished work of an earlier run may be taken."""

    USE = "use"
    REFUSE = "refuse"


class Parameters(Contract):
    """What a person or trigger may say when a run starts: the workflow's own parameters."""

    source: str = Field("", description="Read this URI instead of the file's.")
    as_of: Moment | None = Field(None, description="The moment the run stands for; default: its scheduled time.")
    code: str = Field("", description="URI of the packed user modules; set by `retrain run` and `submit`.")
    cache: Cache = Field(Cache.USE, description="Take features and training of an earlier run when nothing changed.")
    version: int | None = Field(None, ge=1, description="Entry point release: the registered version to release.")
    requested_by: str = Field("", description="Who or what asked for this run.")


class StageOutputs(Contract):
    """Every stage answers with one line for people besides its references."""

    summary: str = Field(description="One line of result.")


class Stage:
    """Base of the declarations below."""

    name: ClassVar[str]
    duty: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    step: ClassVar[str]
    """Its module and function in steps/."""
    account: ClassVar[str]
    """Whose service account, Secret and network policy its pod has."""
    sized: ClassVar[str]
    """The stage whose sizes its pod has."""
    deadline_seconds: ClassVar[int] = 6 * 3600
    memory_mib: ClassVar[int] = 1024
    cpu_millicores: ClassVar[int] = 500
    Inputs: ClassVar[type[Contract]]
    Outputs: ClassVar[type[StageOutputs]]

    def __init_subclass__(cls) -> None:
        """Let a stage go by its own name wherever it says no other."""
        for what in ("step", "account", "sized"):
            if not hasattr(cls, what):
                setattr(cls, what, cls.name)


class Preflight(Stage):
    """Find everything that is wrong before anything is written."""

    name = "preflight"
    duty = "parameters, and what the probes found: every finding at once, before anything is written"
    needs = frozenset({Need.STORE})
    deadline_seconds = 600
    memory_mib = 256
    cpu_millicores = 100

    class Inputs(Contract):
        """The workflow's parameters as text, so that every wrong one is reported here."""

        source: str = ""
        as_of: str = Field("", description="RFC 3339; the workflow fills in its scheduled time.")
        code: str = ""
        cache: str = Cache.USE.value
        version: str = ""
        requested_by: str = ""
        found: str = Field("", description="What each probe found, a line of JSON each.")

    class Outputs(StageOutputs):
        """The moment of the run, frozen here so that a retry decides alike."""

        as_of: Moment


class Probe(Stage):
    """Base of preflight's tasks: what one duty will need, looked at as that duty.  See `contracts.probes`."""

    name = step = "probe"
    sized = Preflight.name
    deadline_seconds = 600

    class Inputs(Contract):
        """What is looked at; as text, since `preflight` tells what is wrong with it."""

        source: str = ""
        as_of: str = ""
        code: str = ""

    class Outputs(StageOutputs):
        """The findings themselves: who cannot reach the store leaves them nowhere else."""

        found: str = Field(description="Findings and notes as JSON.")


class Ingest(Stage):
    """Source to validated dataset."""

    name = "ingest"
    duty = "source -> validated Parquet dataset; schema checked; sha256 of the whole content"
    needs = frozenset({Need.SOURCE, Need.STORE})

    class Inputs(Contract):
        """Where to read, and as of when."""

        source: str = ""
        as_of: Moment
        code: str = ""

    class Outputs(StageOutputs):
        """The dataset, by URI and hash."""

        dataset: str = Field(description="URI of the dataset's folder.")
        dataset_sha256: Sha256
        schema_sha256: Sha256
        rows: int
        warnings: int = Field(description="Rules of level warn that were broken.")
        report: str = Field(description="URI of the validation report.")


class Features(Stage):
    """Dataset to split manifest and recipe."""

    name = "features"
    duty = "dataset -> split manifest (train, validation, test; which row is where) + recipe of the transform"
    needs = frozenset({Need.STORE})

    class Inputs(Contract):
        """The dataset."""

        dataset: str
        dataset_sha256: Sha256
        code: str = ""
        cache: Cache = Cache.USE

    class Outputs(StageOutputs):
        """The split and the transform, by URI and hash, and what is to be fitted on them."""

        split: str = Field(description="URI of the split's folder.")
        split_sha256: Sha256
        transform_sha256: Sha256
        candidates: str = Field("[]", description="Names to fit, as a JSON list; none where the training is there.")
        reused: bool


class Fit(Stage):
    """One candidate to a fitted one, with the rights and sizes of `train`."""

    name = "fit"
    duty = "one candidate: dataset, split -> its best trial by validation rows, by URI; one pod a candidate"
    needs = frozenset({Need.STORE})
    account = sized = "train"

    class Inputs(Contract):
        """The candidate's name, dataset and split."""

        candidate: str
        dataset: str
        dataset_sha256: Sha256
        split: str
        split_sha256: Sha256
        code: str = ""

    class Outputs(StageOutputs):
        """The fitted candidate."""

        fit: str = Field(description="URI of its folder, which ends in its hash; empty when it was left out.")


class Train(Stage):
    """Fitted candidates to one MLflow run."""

    name = "train"
    duty = "fitted candidates -> MLflow run of the best: parameters, metrics, model and signature, hashes, code commit"
    needs = frozenset({Need.STORE, Need.TRACKING})
    memory_mib = 2048
    cpu_millicores = 2000

    class Inputs(Contract):
        """Dataset and split."""

        dataset: str
        dataset_sha256: Sha256
        split: str
        split_sha256: Sha256
        fits: str = Field("", description="URIs of fitted candidates, as a JSON list; the others are fitted here.")
        code: str = ""
        cache: Cache = Cache.USE

    class Outputs(StageOutputs):
        """The MLflow run of the chosen candidate."""

        run_id: str
        candidate: str
        reused: bool


class Evaluate(Stage):
    """The validation gate."""

    name = "evaluate"
    duty = "model -> test metrics against the validation gate: passed or rejected (a rejection is an outcome, no error)"
    needs = frozenset({Need.STORE, Need.TRACKING})

    class Inputs(Contract):
        """The run whose model is judged."""

        run_id: str
        code: str = ""

    class Outputs(StageOutputs):
        """The verdict."""

        verdict: Verdict
        report: str = Field(description="URI of the gate report (JSON).")
        report_sha256: Sha256


class Register(Stage):
    """Run to model version."""

    name = "register"
    duty = "run -> signed model version, once per run whatever the retries; alias `staging`"
    needs = frozenset({Need.STORE, Need.TRACKING, Need.LEDGER})

    class Inputs(Contract):
        """The run that passed, and the gate report that says so."""

        run_id: str
        report: str
        report_sha256: Sha256

    class Outputs(StageOutputs):
        """The version."""

        version: int


class Promote(Stage):
    """The promotion gate."""

    name = "promote"
    duty = "version -> stricter gate, absolute and against production's model; the ledger says approved, or why not"
    needs = frozenset({Need.STORE, Need.TRACKING, Need.LEDGER})

    class Inputs(Contract):
        """The version that wants to serve, and by which way in."""

        version: int
        requested_by: str = ""
        entrypoint: Literal["retrain", "release"] = "release"
        code: str = ""

    class Outputs(StageOutputs):
        """The decision, and the ledger entry that holds it."""

        decision: Promotion
        entry: str = Field(description="Id of the ledger entry of the decision.")
        report: str = Field(description="URI of the promotion report (JSON).")


class Build(Stage):
    """Version to serving image."""

    name = "build"
    duty = "version -> serving image (Kaniko), tag from the run, used by digest ever after; or the reference image"
    needs = frozenset({Need.STORE, Need.TRACKING, Need.IMAGES})

    class Inputs(Contract):
        """The version."""

        version: int

    class Outputs(StageOutputs):
        """What will serve it: an image at once, or what Kaniko is to build."""

        image: str = Field("", description="`reference`; empty when Kaniko is to build the image.")
        context: str = Field("", description="URI of the packed build context.")
        destination: str = Field("", description="Repository and tag that Kaniko pushes to.")
        plain_http: str = Field("", description="Host of a registry that speaks plain HTTP.")


class Deploy(Stage):
    """Image to serving version."""

    name = "deploy"
    duty = "ledger: releasing; rollout watched; healthy: ledger serving, alias production follows; else rolled back"
    needs = frozenset({Need.STORE, Need.TRACKING, Need.LEDGER, Need.SERVER})
    deadline_seconds = 1800

    class Inputs(Contract):
        """The approved version, the entry that approved it, its image."""

        version: int
        entry: str
        image: str

    class Outputs(StageOutputs):
        """How it ended, and where it answers."""

        outcome: Outcome
        url: str


class Notify(Stage):
    """The exit handler."""

    name = "notify"
    duty = "exit handler: outcome with run id, links, error class and what to do"
    needs = frozenset({Need.STORE, Need.HOSTS})
    deadline_seconds = 600

    class Inputs(Contract):
        """What the workflow knows at its end.  Values that were never set arrive as unresolved ``{{...}}`` text."""

        status: str
        failures: str = "null"
        verdict: str = ""
        decision: str = ""
        outcome: str = ""
        run_id: str = ""
        version: str = ""
        url: str = ""
        reports: str = ""

    class Outputs(StageOutputs):
        """The outcome of the run."""

        outcome: Outcome


STAGES: tuple[type[Stage], ...] = (
    Preflight, Ingest, Features, Fit, Train, Evaluate, Register, Promote, Build, Deploy, Notify,
)  # fmt: skip
BY_NAME: dict[str, type[Stage]] = {stage.name: stage for stage in STAGES}
SIZED: tuple[type[Stage], ...] = tuple(stage for stage in STAGES if stage.sized == stage.name)
"""Those that have sizes of their own."""


@cache
def contract() -> str:
    """Return a hash of what a compiled template and the image of its steps must agree on: every stage's parameters."""
    declared: tuple[type[Stage], ...] = (*STAGES, Probe)
    agreed = {stage.name: [list(stage.Inputs.model_fields), list(stage.Outputs.model_fields)] for stage in declared}
    return hashlib.sha256(json.dumps(agreed).encode()).hexdigest()[:12]


def encode(value: Any) -> str:
    """Write a value as the text of an Argo parameter."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, (str, int, float)):
        return str(value)
    return json.dumps(value, separators=(",", ":"), default=str)


def decode(model: type[C], texts: Mapping[str, str]) -> C:
    """Read a model from the texts of Argo parameters (keyed by parameter name).

    Raises
    ------
    pydantic.ValidationError
        When a value does not fit; see `findings`.
    """
    values: dict[str, Any] = {}
    for field, info in model.model_fields.items():
        text = texts.get(parameter(field))
        if text is None:
            continue
        optional = get_origin(info.annotation) in (Union, UnionType) and type(None) in get_args(info.annotation)
        if text == "" and (optional or (not info.is_required() and info.annotation is not str)):
            continue
        values[field] = text
    return model.model_validate(values)


def findings(error: ValidationError) -> list[Finding]:
    """Turn pydantic's errors on parameters into findings."""
    return [
        Finding(where=f"parameter {parameter(str(e['loc'][0]))}", what=f"{e['msg']}, got {e['input']!r}")
        if e["type"] != "missing"
        else Finding(where=f"parameter {parameter(str(e['loc'][0]))}", what="is missing")
        for e in error.errors()
    ]


def choices(model: type[Contract], field: str) -> tuple[str, ...]:
    """Return the values that a field may have, empty when it is free: Argo's `enum`."""
    annotation = model.model_fields[field].annotation
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for option in options:
        if isinstance(option, type) and issubclass(option, Enum):
            return tuple(str(m.value) for m in option)
        if option is bool:
            return ("true", "false")
        if get_origin(option) is Literal:
            return tuple(str(v) for v in get_args(option))
    return ()


def type_name(model: type[Contract], field: str) -> str:
    """Return a short name of a field's type, for help and docs."""
    spec = _json_schema(model)["properties"][field]
    if "anyOf" in spec:
        spec = next(s for s in spec["anyOf"] if s.get("type") != "null")
    if "$ref" in spec:
        return "one of " + ", ".join(choices(model, field))
    return str(spec.get("format") or spec.get("type", "string"))


@cache
def _json_schema(model: type[Contract]) -> dict[str, Any]:
    """Return a model's schema; every start of a step asks for each of its fields."""
    return model.model_json_schema()
