"""The pipeline file as a whole: reading it, and errors that name line, key and remedy."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from contracts.base import Contract, Name
from contracts.errors import ConfigError, Finding
from contracts.metrics import METRICS, Task
from contracts.names import API_VERSION
from contracts.pipeline.gates import GatePolicy, Gates
from contracts.pipeline.learning import Features, Split, Target, Training
from contracts.pipeline.operation import Notifications, Release, Resources, Schedule, Triggers
from contracts.pipeline.source import Source
from contracts.pipeline.table import ColumnType, Schema

_BUILT_IN = {"lightgbm", "xgboost", "hist_gradient_boosting", "random_forest", "linear", "dummy"}


class Pipeline(Contract):
    """A pipeline file (``apiVersion: retrain/v1``)."""

    api_version: Literal["retrain/v1"] = Field(alias="apiVersion")
    name: Name
    description: str = ""
    source: Source
    table: Schema = Field(alias="schema")
    target: Target
    features: Features = Features()
    split: Split = Split()
    training: Training
    gates: Gates
    code: tuple[str, ...] = Field((), description="Further Python files beside this one that your modules import.")
    release: Release = Release()
    schedule: Schedule | None = None
    triggers: Triggers = Triggers()
    notifications: Notifications = Notifications()
    resources: dict[str, Resources] = Field({}, description="By stage name.")

    @model_validator(mode="after")
    def _columns_are_in_the_schema(self) -> Pipeline:
        known = set(self.table.names)
        wanted = {"target.column": self.target.column}
        wanted |= {f"features.columns[{i}].column": p.column for i, p in enumerate(self.features.columns)}
        wanted |= {f"split.key[{i}]": c for i, c in enumerate(self.split.key)}
        if self.split.group:
            wanted["split.group"] = self.split.group
        if self.split.time:
            wanted["split.time.column"] = self.split.time.column
        if self.training.sample_weight:
            wanted["training.sample_weight"] = self.training.sample_weight
        for name, policy in self._policies().items():
            wanted |= {
                f"{name}.validation.slices[{i}].column": s.column for i, s in enumerate(policy.validation.slices)
            }
        for where, column in wanted.items():
            if column not in known:
                near = difflib.get_close_matches(column, known, n=1)
                raise ValueError(
                    f"{where} names {column!r}, which is not in schema.columns"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )
        if self.split.time and self.table.column(self.split.time.column).type not in (
            ColumnType.DATE,
            ColumnType.TIMESTAMP,
        ):
            raise ValueError("split.time.column must be a date or timestamp column")
        return self

    @model_validator(mode="after")
    def _task_fits(self) -> Pipeline:
        task, column = self.target.task, self.table.column(self.target.column)
        if task is Task.REGRESSION and column.type not in (ColumnType.INTEGER, ColumnType.NUMBER):
            raise ValueError(f"a regression target is integer or number, {column.name} is {column.type}")
        if task is not Task.REGRESSION and column.type not in (
            ColumnType.STRING,
            ColumnType.INTEGER,
            ColumnType.BOOLEAN,
        ):
            raise ValueError(f"classes are string, integer or boolean, {column.name} is {column.type}")
        if task is Task.REGRESSION and (self.split.method == "stratified" or self.training.class_weight):
            raise ValueError("stratified split and class_weight are for classes, this target is regression")
        metrics = {"training.metric": self.training.metric}
        for name, policy in self._policies().items():
            for i, t in enumerate((*policy.validation.thresholds, *policy.promotion.thresholds)):
                metrics |= {f"{name} threshold {i + 1} ({m})": m for m in ((t.metric,) if t.metric else t.composite)}
            metrics |= {f"{name} slice {i + 1}": s.metric for i, s in enumerate(policy.validation.slices)}
            if policy.promotion.comparison:
                metrics[f"{name}.promotion.comparison.metric"] = policy.promotion.comparison.metric
        for where, metric in metrics.items():
            if task not in METRICS[metric].tasks:
                fitting = ", ".join(m.name for m in METRICS.values() if task in m.tasks)
                raise ValueError(f"{where}: {metric} does not fit a {task} target; one of {fitting}")
        return self

    @model_validator(mode="after")
    def _estimators_are_known(self) -> Pipeline:
        for i, candidate in enumerate(self.training.candidates):
            name = candidate.estimator
            if ":" not in name and name not in _BUILT_IN:
                near = difflib.get_close_matches(name, _BUILT_IN, n=1)
                raise ValueError(
                    f"training.candidates[{i}].estimator: {name!r} is neither built in nor module:attribute"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                )
            if self.features.passthrough and ":" not in name and name != "dummy":
                raise ValueError(
                    f"features.passthrough hands on raw columns, which only your own Pipeline reads; {name!r} is built in"
                )
        return self

    def _policies(self) -> dict[str, GatePolicy]:
        named = {f"gates.environments.{k}": v for k, v in self.gates.environments.items()}
        return {"gates.default": self.gates.default, **named}

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The raw columns that the model reads, in schema order: what a prediction request must hold."""
        out = {self.target.column, self.training.sample_weight}
        out |= {p.column for p in self.features.columns if p.drop}
        return tuple(n for n in self.table.names if n not in out)

    @property
    def user_modules(self) -> tuple[str, ...]:
        """Modules named as ``module:attribute`` by source and candidates, without doubles."""
        named = [u.removeprefix("python:").split(":")[0] for u in self.source.uris if u.startswith("python:")]
        named += [c.estimator.split(":")[0] for c in self.training.candidates if ":" in c.estimator]
        return tuple(dict.fromkeys(named))

    def section_sha256(self, *sections: str) -> str:
        """Return the hash of some sections of the file, as canonical JSON: part of the key under which work is reused."""
        picked = self.model_dump(mode="json", include=set(sections))
        return hashlib.sha256(json.dumps(picked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_pipeline(text: str, where: str = "pipeline file") -> Pipeline:
    """Read a pipeline file's text.

    Raises
    ------
    ConfigError
        With one finding a mistake, each naming line, key and remedy.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(
            f"{where} is not YAML", findings=[Finding(where=f"{where}:{line}", what=str(error.problem))]
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(
            f"{where} is not YAML", findings=[Finding(where=where, what=str(error).splitlines()[0])]
        ) from None
    if not isinstance(data, dict):
        raise ConfigError(
            f"{where} is not a pipeline file",
            findings=[Finding(where=f"{where}:1", what="it holds no keys", remedy="`retrain init` writes one")],
        )
    if doubles := list(_double_keys(node)):
        raise ConfigError(
            f"{where} has mistakes",
            findings=[
                Finding(where=f"{where}:{line}", what=f"{key} stands twice", remedy="keep one") for key, line in doubles
            ],
        )
    if data.get("apiVersion") != API_VERSION:
        finding = Finding(
            where=f"{where}:{_line(node, ('apiVersion',))}",
            what=f"apiVersion is {data.get('apiVersion')!r}",
            remedy=f"this retrain reads {API_VERSION!r}",
        )
        raise ConfigError(f"{where} is of another version", findings=[finding])
    try:
        return Pipeline.model_validate(data)
    except ValidationError as error:
        raise ConfigError(
            f"{where} has mistakes", findings=[_finding(e, node, where) for e in error.errors()]
        ) from None


def load_pipeline(path: Path) -> Pipeline:
    """Read a pipeline file; see `parse_pipeline`."""
    return parse_pipeline(read_pipeline_text(path), str(path))


def read_pipeline_text(path: Path) -> str:
    """Return the text of a pipeline file, unread.

    Raises
    ------
    ConfigError
        When there is no such file, or it is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"no such pipeline file: {path}", remedy="`retrain init --data FILE --target COLUMN` writes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors."""
    schema = Pipeline.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "retrain pipeline file", **schema}


def _finding(error: Any, node: yaml.Node | None, where: str) -> Finding:
    loc = tuple(
        part for part in error["loc"] if not (isinstance(part, str) and ("[" in part or part.startswith("function-")))
    )
    key = ".".join(f"[{p}]" if isinstance(p, int) else str(p) for p in loc).replace(".[", "[") or "the file"
    what, remedy = error["msg"].removeprefix("Value error, "), ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(loc[-1]), _keys_beside(loc), n=1)
        what, remedy = (
            "unknown key",
            f"did you mean {near[0]!r}?" if near else "remove it, or see the JSON schema (`retrain schema file`)",
        )
    elif error["type"] == "missing":
        what, remedy = "is missing", "add it"
    return Finding(where=f"{where}:{_line(node, loc)}", what=f"{key}: {what}", remedy=remedy)


def _keys_beside(loc: tuple[Any, ...]) -> list[str]:
    definitions = json_schema()
    at: Any = definitions
    for part in loc[:-1]:
        at = _resolve(at, definitions)
        at = (
            at.get("items", {})
            if isinstance(part, int)
            else at.get("properties", {}).get(part, at.get("additionalProperties", {}))
        )
    at = _resolve(at, definitions)
    return list(at.get("properties", {})) if isinstance(at, dict) else []


def _resolve(at: Any, definitions: dict[str, Any]) -> Any:
    while isinstance(at, dict):
        if "$ref" in at:
            at = definitions["$defs"][at["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in at:
            at = next((o for o in at["anyOf"] if "$ref" in o or o.get("type") in ("array", "object")), {})
        else:
            break
    return at


def _double_keys(node: yaml.Node | None) -> Any:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.value, key.start_mark.line + 1
            seen.add(key.value)
            yield from _double_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _double_keys(value)


def _line(node: yaml.Node | None, loc: tuple[Any, ...]) -> int:
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
