"""What a training leaves in MLflow: parameters, metrics, tags, artifacts, the packaged model.  Called by `train`.

docs/mlflow.md lists the names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from contracts.errors import Finding
from contracts.metrics import Task
from contracts.names import STEPS_IMAGE, tag
from contracts.references import ModelManifest, Violation
from serving.model import manifest_sha256, save
from serving.user_code import UserCode
from steps import own_packages, provenance
from steps.candidates import Problem
from steps.reports import read_ingest_report
from steps.reuse import LOCK_FILE, lock_sha256
from steps.tracking import DIFF, LOCK, MACHINE, PACKAGE, PACKAGES, PIPELINE, USER_CODE
from steps.training.fitting import Contender
from steps.training.material import Material, read_examples
from steps.world import World


def first_tags(material: Material, skipped: Finding | None, world: World) -> dict[str, str]:
    """Return the tags that are known before anything is fitted: all references."""
    code, packages = provenance.retrain_code(world.settings), own_packages.current(world.settings)
    tags = {
        "dataset": material.inputs.dataset,
        "dataset_sha256": material.dataset.sha256,
        # the rules of this file: the dataset's manifest names those under which the same rows were first stored
        "schema_sha256": world.pipeline.section_sha256("table"),
        "rows": str(material.dataset.rows),
        "split": material.inputs.split,
        "split_sha256": material.split.manifest.sha256,
        "transform_sha256": material.recipe.sha256,
        "code_version": provenance.retrain_version(),
        "code_commit": code.commit,
        "code": material.inputs.code,
        "user_code": material.code.sha256,
        "user_commit": material.code.commit,
        "lock_sha256": lock_sha256(),
        "packages_sha256": own_packages.lock_sha256(packages),
        "steps_image": world.settings.steps_image if world.settings.steps_image != STEPS_IMAGE else "",
        "serving_image": world.settings.serving_image,
        "pipeline": world.pipeline.name,
        "pipeline_sha256": hashlib.sha256(world.pipeline_path.read_bytes()).hexdigest(),
        "warnings": str(len(_warnings(material, world))),
        "skipped": f"LightGBM: {skipped.what}" if skipped else "",
    }
    return {tag(name): value for name, value in tags.items() if value}


def record_training(
    run_id: str, problem: Problem, best: Contender, all_of_them: Sequence[Contender], material: Material, world: World
) -> None:
    """Log the chosen candidate, how the others did, and the packaged model."""
    tracking, examples = world.tracking, read_examples(material, world)
    manifest = ModelManifest(
        pipeline=world.pipeline.name,
        task=problem.task,
        columns=material.columns,
        classes=material.classes.texts,
        class_type=world.pipeline.table.column(world.pipeline.target.column).type.value,
        positive=material.classes.texts[-1] if problem.task is Task.BINARY else None,
        threshold=best.fit.threshold,
        estimator=best.kind,
        passthrough=material.recipe.passthrough,
        trusted_types=world.pipeline.training.trusted_types,
        contract=world.pipeline.release.contract,
        dataset_sha256=material.dataset.sha256,
        transform_sha256=material.recipe.sha256,
        candidate=best.candidate.name,
    )
    user_code = material.code if ":" in best.candidate.estimator else UserCode({})
    folder = world.scratch / run_id / PACKAGE
    packages = own_packages.current(world.settings)
    manifest = save(folder, manifest, material.recipe, best, user_code, examples.made_up, packages)
    tracking.log(run_id, _parameters(best, problem, material), _metrics(best, all_of_them))
    tracking.log_dataset(run_id, material.inputs.dataset, material.dataset.sha256, material.dataset.rows)
    tracking.log_files(run_id, _files(all_of_them, material, world))
    tracking.set_tags(run_id, {tag("candidate"): best.candidate.name, tag("artifact_sha256"): manifest_sha256(folder)})
    pins = [package.pin for package in own_packages.read_lock(packages) if package.wanted()]
    requirements = [*provenance.requirements(manifest.estimator), *pins]
    tracking.log_package(run_id, folder, manifest, examples.for_mlflow, requirements)


def _parameters(best: Contender, problem: Problem, material: Material) -> dict[str, Any]:
    counts = material.split.manifest.counts
    given = {f"parameters.{name}": value for name, value in sorted(best.parameters.items())}
    return {
        "candidate": best.candidate.name,
        "estimator": best.candidate.estimator,
        "metric": problem.metric,
        "trial": best.fit.trial,
        "seed": problem.seed,
        "threads": problem.threads,
        **{name: value for name, value in provenance.machine().items() if name in ("architecture", "cpu", "python")},
        **{f"rows.{side}": count for side, count in counts.items()},
        **({"rounds": best.fit.rounds} if best.fit.rounds is not None else {}),
        **({"threshold": best.fit.threshold} if best.fit.threshold is not None else {}),
        **given,
    }


def _metrics(best: Contender, all_of_them: Sequence[Contender]) -> dict[str, float]:
    found = {
        f"candidate.{each.candidate.name}.validation.{name}": value
        for each in all_of_them
        for name, value in each.fit.metrics["validation"].items()
    }
    return found | {f"{side}.{name}": value for side, told in best.fit.metrics.items() for name, value in told.items()}


def _files(all_of_them: Sequence[Contender], material: Material, world: World) -> dict[str, bytes]:
    code = provenance.retrain_code(world.settings)
    files = {
        PIPELINE: world.pipeline_path.read_bytes(),
        "trials.json": _json([trial for each in all_of_them for trial in each.history]),
        MACHINE: _json(provenance.machine()),
        **{f"{USER_CODE}/{path}": data for path, data in material.code.files.items()},
    }
    if LOCK_FILE.is_file():
        files[LOCK] = LOCK_FILE.read_bytes()
    if packages := own_packages.current(world.settings):
        files[PACKAGES] = packages.encode()
    if code.diff:
        files[DIFF] = code.diff
    if warnings := _warnings(material, world):
        files["warnings.json"] = _json([warning.model_dump(mode="json") for warning in warnings])
    return files


def _warnings(material: Material, world: World) -> tuple[Violation, ...]:
    """Return what this workflow's ingest warned of; without it, what was found when the rows were first stored."""
    report = read_ingest_report(world)
    return report.warnings if report else material.dataset.warnings


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, default=str).encode() + b"\n"
