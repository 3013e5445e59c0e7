"""What a request may hold and what an answer looks like, derived from the model's manifest.  Called by `serving.app`.

Naming follows KServe's v1 protocol: ``{"instances": [...]}`` in, ``{"predictions": [...]}`` out.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from contracts.base import Contract
from contracts.errors import Finding
from contracts.metrics import Task
from contracts.pipeline.table import ColumnType
from contracts.references import ColumnSpec, ModelManifest

MAX_ROWS = 1000
"""Rows in one request."""
MAX_BODY = 4 * 1024 * 1024
"""Bytes of one request's body."""
MAX_FINDINGS = 20
"""Findings in one answer; the message says how many there are in all."""

_FLOAT32_MAX = 3.4028234663852886e38
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def _iso_text(value: Any) -> str:
    # pydantic alone would read a number, or text of digits, as seconds since 1970; nobody means that here
    if not isinstance(value, str) or value.strip().lstrip("+-").replace(".", "", 1).isdigit():
        raise ValueError("is no timestamp as ISO 8601 text, like 2026-01-31T12:00:00Z")
    return value


def _has_a_utc_form(value: datetime) -> datetime:
    if value.tzinfo is not None:
        try:
            value.astimezone(UTC)
        except (OverflowError, ValueError):
            raise ValueError("is out of range in UTC") from None
    return value


_TYPES: dict[str, Any] = {
    ColumnType.INTEGER: Annotated[int, Field(ge=_INT64_MIN, le=_INT64_MAX)],
    # estimators may hold features as float32; what does not fit there is refused by name, not by a crash
    ColumnType.NUMBER: Annotated[float, Field(allow_inf_nan=False, ge=-_FLOAT32_MAX, le=_FLOAT32_MAX)],
    ColumnType.BOOLEAN: bool,
    ColumnType.STRING: str,
    ColumnType.DATE: date,
    ColumnType.TIMESTAMP: Annotated[
        datetime, Field(strict=False), BeforeValidator(_iso_text), AfterValidator(_has_a_utc_form)
    ],
}


class Warned(Contract):
    """Something that a caller should know about rows that were answered all the same."""

    kind: Literal["unseen_category", "unexpected_null", "no_number"]
    column: str = Field("", description="Empty when it is about the prediction itself.")
    instances: tuple[int, ...] = Field(description="Positions in the request, from 0.")
    message: str


class ModelAnswer(Contract):
    """Which model answers: also the whole answer of `/v1/model`."""

    name: str
    version: int
    run_id: str = Field(description="MLflow run that trained it.")
    dataset_sha256: str
    since: datetime = Field(description="When this version began to answer here.")


class ClassPrediction(Contract):
    """A class, by the model's own threshold, and the probability of every class."""

    id: str
    label: str | int | bool
    probabilities: dict[str, float | None]


class ValuePrediction(Contract):
    """A predicted number."""

    id: str
    value: float | None


class ErrorAnswer(Contract):
    """Why there is no prediction: every field that does not fit, by name; never a value."""

    request_id: str
    message: str
    findings: tuple[Finding, ...] = ()


def request_model(manifest: ModelManifest, example: list[dict[str, Any]]) -> type[BaseModel]:
    """Make the model of a request: every column required, no other key, strict types, `null` always allowed.

    `null` is answered even where training had none (the transform fills it), with a warning.
    """
    fields = {column.name: _annotation(column) for column in manifest.columns}
    make: Any = TypedDict  # a type checker wants the columns written out; they are known at run time only
    instance: Any = make("Instance", fields)
    instance.__pydantic_config__ = ConfigDict(extra="forbid", strict=True)
    shown: Any = {"examples": [{"instances": example}]}
    return create_model(
        "PredictRequest",
        __config__=ConfigDict(extra="forbid", json_schema_extra=shown),
        instances=(list[instance], Field(min_length=1, max_length=MAX_ROWS, description="Rows to predict.")),
    )


def answer_model(manifest: ModelManifest) -> type[BaseModel]:
    """Make the model of an answer, for the OpenAPI page."""
    prediction: Any = ValuePrediction if manifest.task is Task.REGRESSION else ClassPrediction
    return create_model(
        "PredictAnswer",
        __base__=Contract,
        id=(str, Field(description="Prediction id: pipeline, version and a unique part.")),
        predictions=(tuple[prediction, ...], ...),
        model=(ModelAnswer, ...),
        warnings=(tuple[Warned, ...], ...),
    )


def findings(error: ValidationError) -> list[Finding]:
    """Turn pydantic's errors into findings that name row and field; values are never repeated."""
    return [
        Finding(
            where=_where(item["loc"]),
            what=_WHAT.get(item["type"], item["msg"].removeprefix("Value error, ")),
            remedy=_WHOLE if len(item["loc"]) < 2 else _REMEDY.get(item["type"], "send what /docs shows for it"),
        )
        for item in error.errors(include_url=False, include_input=False, include_context=False)[:MAX_FINDINGS]
    ]


_WHOLE = 'a request is {"instances": [{"column": value, ...}, ...]}; /docs has one that works'
_REMEDY = {
    "missing": "add it, with null where the value is missing",
    "extra_forbidden": "remove it; /docs lists the columns",
    "finite_number": "send a finite number, or null",
    "greater_than_equal": "send a number that fits 64 bits, or null",
    "less_than_equal": "send a number that fits 64 bits, or null",
}


_WHAT = {
    "missing": "is absent; null says that it is missing",
    "extra_forbidden": "is no column of this model",
    "too_short": "holds no row",
    "too_long": f"holds more than {MAX_ROWS} rows",
    "greater_than_equal": "is out of range",
    "less_than_equal": "is out of range",
}


def _where(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return text.removeprefix(".") or "body"


def _annotation(column: ColumnSpec) -> Any:
    notes = [] if column.nullable else ["never null in training"]
    if column.categories is not None and not column.sensitive:
        shown = ", ".join(column.categories[:20]) + (", ..." if len(column.categories) > 20 else "")
        notes.append(f"seen in training: {shown}")
    return Annotated[_TYPES[column.type] | None, Field(description="; ".join(notes) or None)]
