"""What lies behind the URIs that stages hand on, and the records that lineage is read from."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from contracts.base import Contract, Sha256
from contracts.metrics import Task
from contracts.outcomes import Note, State

DATASET_FILE = "data.parquet"
DATASET_MANIFEST = "dataset.json"
SPLIT_ROWS = "rows.parquet"
SPLIT_MANIFEST = "split.json"
RECIPE_FILE = "recipe.json"
PACKAGES_FILE = "packages.lock"

SIDES = ("train", "validation", "test")
"""In rows.parquet the column `side` (int8) holds the index into this tuple."""


class Violation(Contract):
    """One broken rule."""

    column: str
    rule: str
    level: str
    count: int
    share: float
    limit: str = ""
    examples: tuple[dict[str, Any], ...] = Field(
        (), description="First breaking rows: {row: number from 1, value: ...}."
    )

    def __str__(self) -> str:
        if self.rule == "freshness":
            return f"freshness: {self.limit}"
        if self.rule.startswith("rows."):
            return f"{self.rule}: {self.count} rows, the limit is {self.limit}"
        return f"{self.column}: {self.rule} broken by {self.count} rows ({self.share:.2%})"


class DatasetManifest(Contract):
    """``<store>/datasets/<sha256>/dataset.json``, beside data.parquet."""

    sha256: Sha256
    schema_sha256: Sha256
    rows: int
    columns: tuple[tuple[str, str], ...]
    sources: tuple[str, ...] = Field(description="Resolved URIs, without credentials.")
    as_of: AwareDatetime
    warnings: tuple[Violation, ...] = ()


class SplitManifest(Contract):
    """``<store>/splits/<sha256>/split.json``, beside rows.parquet and recipe.json.

    rows.parquet has one row per dataset row, in order: `key` (fixed binary 16: truncated SHA-256 of the row's key) and
    `side` (int8).  `sha256` is over the manifest's other fields, the keys and the sides, not over Parquet's bytes.
    """

    sha256: Sha256
    dataset_sha256: Sha256
    transform_sha256: Sha256
    method: str
    seed: int
    key_scheme: str = Field(
        "", description="Hash of what keys are made of; keys of two splits compare only when it is the same."
    )
    counts: dict[str, int]
    class_shares: dict[str, dict[str, float]] = Field({}, description="side -> class -> share (classification).")
    notes: tuple[str, ...] = ()


class ColumnSpec(Contract):
    """One column of the model's signature: what a request must hold."""

    name: str
    type: str
    nullable: bool
    sensitive: bool = False
    categories: tuple[str, ...] | None = Field(None, description="Values seen in training, for categorical columns.")


def class_text(label: str | int | bool) -> str:
    """Return a class as manifests and reports write it: a boolean is true or false."""
    return str(label).lower() if isinstance(label, bool) else str(label)


class ModelManifest(Contract):
    """``package.json`` of a packaged model: everything serving needs besides the fitted parts."""

    format: int = 1
    pipeline: str
    task: Task
    columns: tuple[ColumnSpec, ...]
    classes: tuple[str, ...] = Field((), description="Class labels as text, in the order of the probability columns.")
    class_type: str = Field("string", description="Column type of the labels: string, integer or boolean.")
    positive: str | None = None
    threshold: float | None = None
    estimator: str = Field(description="How the estimator is stored: skops, lightgbm, xgboost.")
    passthrough: bool = False
    trusted_types: tuple[str, ...] = ()
    user_modules: dict[str, str] = Field({}, description="Module name -> content sha256, packed under user/.")
    files: dict[str, Sha256] = Field({}, description="Every other file of the package -> sha256; checked on loading.")
    contract: int = 1
    dataset_sha256: Sha256
    transform_sha256: Sha256
    candidate: str


class LedgerEntry(Contract):
    """One transition of one version, or a note.  `id` is the sha256 of all other fields, `previous` the entry before.

    A note changes no state.  Its `version` is the one that the alias names, or whose material was removed (0: no
    version's).
    """

    id: str
    model: str
    number: int
    previous: str
    state: State | Note
    version: int
    run_id: str
    workflow: str
    by: str
    reason: str
    evidence: dict[str, Any]
    at: AwareDatetime
