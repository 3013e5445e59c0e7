"""Choose among the fitted candidates, and leave the best in MLflow with all that it came from.  The stage.

What `fit` has not fitted is fitted here: the stage does the whole training where it is called alone, with the same
result.  A run carries its `train_key`: the hash of what training reads.  Tried again, the stage finds the run that it
finished, or marks the one that it did not finish KILLED and starts afresh.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from contracts.errors import StageError
from contracts.names import tag
from contracts.pipeline.learning import Candidate
from contracts.stages import Cache, Train
from steps.candidates.choice import pick, without_lightgbm
from steps.reuse import remember
from steps.training.fitting import Contender, fit_candidate, get, problem_of, remove
from steps.training.key import keys, train_key
from steps.training.material import Material, read_material, read_sides
from steps.training.record import first_tags, record_training
from steps.world import World


def train(inputs: Train.Inputs, *, world: World) -> Train.Outputs:
    """Return the MLflow run of the best candidate, trained now or found finished.

    Raises
    ------
    ConfigError
        When parameters, own code or a library do not fit; the findings name candidate and parameter.
    DataError
        When target or weights can't be learned from.
    """
    code = world.user_code(inputs.code)
    for key, problem in keys(inputs.dataset_sha256, inputs.split_sha256, code, world):
        if found := _finished(inputs, key, world):
            remember(world, Train.name, key, found)
            return found
        missing = problem
    if missing:
        world.log.warning("LightGBM is skipped: %s; to mend it: %s", missing.what, missing.remedy)
    material = read_material(inputs, code, world)
    fits = [uri for uri in json.loads(inputs.fits or "[]") if uri]
    run_id = world.tracking.begin(key, world.workflow, first_tags(material, missing, world), world.now())
    with _marked_when_it_fails(run_id, world):
        candidates = without_lightgbm(world.pipeline.training.candidates, missing)
        contenders = _contenders(fits, candidates, material, world)
        best = pick(world.pipeline.training.metric, contenders)
        record_training(run_id, problem_of(material, world), best, contenders, material, world)
        world.tracking.end(run_id)
    metric = f"{world.pipeline.training.metric} {best.value:.4f} on validation"
    summary = f"{best.candidate.name}, best of {len(contenders)}: {metric}"
    outputs = Train.Outputs(run_id=run_id, candidate=best.candidate.name, reused=False, summary=summary)
    remember(world, Train.name, key, outputs)
    remove(fits, world)
    return outputs


def _finished(inputs: Train.Inputs, key: str, world: World) -> Train.Outputs | None:
    """Return what an earlier attempt has finished, or with ``cache: use`` an earlier run."""
    run_id = world.tracking.find_run(key, workflow=world.workflow if inputs.cache is Cache.REFUSE else "")
    if run_id is None:
        return None
    record = world.tracking.record(run_id)
    candidate = record.tags[tag("candidate")]
    reused = record.tags[tag("workflow")] != world.workflow
    summary = f"{'reused' if reused else 'finished before'}: {candidate}, run {run_id[:8]}"
    return Train.Outputs(run_id=run_id, candidate=candidate, reused=reused, summary=summary)


def _contenders(
    fits: Sequence[str], candidates: Sequence[Candidate], material: Material, world: World
) -> list[Contender]:
    """Return every candidate fitted, in the file's order: taken from the store, or else fitted now."""
    key = train_key(material.dataset.sha256, material.split.manifest.sha256, material.code, world)
    by_name = {candidate.name: candidate for candidate in candidates}
    taken = {found.candidate.name: found for uri in fits if (found := get(uri, by_name, key, world))}
    if left := [candidate for candidate in candidates if candidate.name not in taken]:
        problem, sides = problem_of(material, world), read_sides(material, world)
        for candidate in left:
            folder = world.scratch / f"fit-{candidate.name}"
            taken[candidate.name] = fit_candidate(candidate, problem, sides, key, folder, world)
    return [taken[candidate.name] for candidate in candidates]


@contextmanager
def _marked_when_it_fails(run_id: str, world: World) -> Iterator[None]:
    try:
        yield
    except Exception:
        try:
            world.tracking.end(run_id, "FAILED")
        except StageError as error:
            world.log.warning("run %s could not be marked as failed: %s", run_id, error.message)
        raise
