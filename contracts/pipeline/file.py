"""The pipeline file as a whole: the model of it, and its JSON schema.  `contracts.pipeline.reading` reads it."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from contracts.base import Contract, Name
from contracts.pipeline.checks import mistakes
from contracts.pipeline.gates import Gates
from contracts.pipeline.learning import Features, Split, Target, Training
from contracts.pipeline.mistakes import refuse
from contracts.pipeline.operation import Notifications, Records, Release, Resources, Schedule, Triggers
from contracts.pipeline.source import Source
from contracts.pipeline.table import Schema

Pin = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?(\[[\w,-]+\])?==[\w.!+-]+$")]
"""A package at one version."""


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
    packages: tuple[Pin, ...] = Field(
        (), description="Packages that your modules import beside retrain's own libraries: `name==version` each.",
        examples=[["holidays==0.60"]],
    )  # fmt: skip
    release: Release = Release()
    records: Records = Records()
    schedule: Schedule | None = None
    triggers: Triggers = Triggers()
    notifications: Notifications = Notifications()
    resources: dict[str, Resources] = Field({}, description="By stage name.")

    @model_validator(mode="after")
    def _sections_fit(self) -> Pipeline:
        refuse(mistakes(self))
        return self

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The raw columns that the model reads, in schema order: what a prediction request must hold."""
        out = {self.target.column, self.training.sample_weight}
        out |= {p.column for p in self.features.columns if p.drop}
        return tuple(n for n in self.table.names if n not in out)

    @property
    def user_modules(self) -> tuple[str, ...]:
        """Modules named as ``module:attribute`` by source, candidates and gates, without doubles."""
        named = [u.removeprefix("python:").split(":")[0] for u in self.source.uris if u.startswith("python:")]
        named += [c.estimator.split(":")[0] for c in self.training.candidates if ":" in c.estimator]
        named += [function.split(":")[0] for function in self.gates.functions]
        return tuple(dict.fromkeys(named))

    def section_sha256(self, *sections: str) -> str:
        """Return the hash of some sections, as canonical JSON: part of the key under which work is reused."""
        picked = self.model_dump(mode="json", include=set(sections))
        return hashlib.sha256(json.dumps(picked, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the file, for editors."""
    schema = Pipeline.model_json_schema(by_alias=True)
    schema["title"] = "retrain pipeline file"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
