"""Turn a source into a validated, typed, hashed dataset.  Called as the `ingest` stage.

Nothing is written to the store before every rule has been judged.  The dataset's folder is named by its hash, so a
retry, or a run on the same data, finds what is there and leaves it.
"""

from __future__ import annotations

from contracts.errors import DataError
from contracts.pipeline.table import Schema
from contracts.references import DATASET_FILE, DATASET_MANIFEST, DatasetManifest, Violation
from contracts.stages import Ingest
from steps.dataset import dataset_uri, has_dataset
from steps.ingest_report import IngestReport
from steps.reports import INGEST_REPORT, run_report_uri
from steps.sources import Opened, open_source
from steps.table.assembly import Assembled, assemble
from steps.table.rules import judge, violation_findings
from steps.table.uniqueness import repeated
from steps.world import World


def ingest(inputs: Ingest.Inputs, *, world: World) -> Ingest.Outputs:
    """Read, check and store.

    Raises
    ------
    DataError
        With a finding for every rule that is broken.
    ConfigError, NetworkError, StorageError
        When the source cannot be reached.
    """
    schema = world.pipeline.table
    opened = open_source(world.pipeline.source, inputs.source, inputs.as_of, inputs.code, world=world)
    assembled = assemble(opened.tasks(schema), schema, world.scratch / DATASET_FILE)
    violations = _judged(assembled, opened, schema, inputs, world)
    schema_sha256 = world.pipeline.section_sha256("table")
    uri = dataset_uri(world, assembled.sha256)
    warnings = tuple(v for v in violations if v.level == "warn")
    rows = assembled.tally.rows
    if not has_dataset(world, uri):
        manifest = DatasetManifest(
            sha256=assembled.sha256,
            schema_sha256=schema_sha256,
            rows=rows,
            columns=tuple((c.name, c.type.value) for c in schema.columns),
            sources=opened.uris,
            as_of=inputs.as_of,
            warnings=warnings,
        )
        world.storage.upload(assembled.parquet, f"{uri}/{DATASET_FILE}")
        world.storage.write(f"{uri}/{DATASET_MANIFEST}", manifest.model_dump_json(indent=2).encode())
    report = IngestReport(
        dataset=uri,
        dataset_sha256=assembled.sha256,
        schema_sha256=schema_sha256,
        rows=rows,
        sources=opened.uris,
        as_of=inputs.as_of,
        violations=violations,
    )
    where = world.storage.write(run_report_uri(world, INGEST_REPORT), report.model_dump_json(indent=2).encode())
    return Ingest.Outputs(
        summary=_summary(rows, len(schema.columns), assembled.sha256, warnings),
        dataset=uri,
        dataset_sha256=assembled.sha256,
        schema_sha256=schema_sha256,
        rows=rows,
        warnings=len(warnings),
        report=where,
    )


def _judged(
    assembled: Assembled, opened: Opened, schema: Schema, inputs: Ingest.Inputs, world: World
) -> tuple[Violation, ...]:
    tally = assembled.tally
    if not tally.rows:
        raise DataError(f"{', '.join(opened.uris)}: there is a header, and no rows")
    tally.breaches.update(repeated(assembled.parquet, schema, world.scratch))
    violations = judge(tally, schema, inputs.as_of)
    for level, log in (("error", world.log.error), ("warn", world.log.warning)):
        broken = [v for v in violations if v.level == level]
        if level == "error" and broken:
            raise DataError(f"the data breaks {_rules(len(broken))} of the schema", findings=violation_findings(broken))
        for finding in violation_findings(broken):
            log("%s", finding)
    return violations


def _summary(rows: int, columns: int, sha256: str, warnings: tuple[Violation, ...]) -> str:
    text = f"{rows:,} rows, {columns} columns, sha256 {sha256[:12]}"
    if warnings:
        names = ", ".join(dict.fromkeys(f"{v.column} {v.rule}".strip() for v in warnings))
        text += f"; warnings on {_rules(len(warnings))}: {names}"
    return text


def _rules(count: int) -> str:
    return "1 rule" if count == 1 else f"{count} rules"
