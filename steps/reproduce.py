"""Build a version again from what was kept, and compare its answers.  Called by `retrain reproduce`.

The dataset, the user's modules, the pipeline file, retrain's own commit, the lock file and the thread count are the
recorded ones; `steps.recorded_code`, `steps.recorded_environment` and `steps.rebuild` bring each back.  What can't be
brought back (a CPU, a Python's patch version) is named beside the answer.

``python -m steps.reproduce MODEL@VERSION`` does it with the code and libraries that run it: the main process of a pod
whose image is the version's own.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from contracts import names
from contracts.base import Contract
from contracts.errors import ConfigError, StageError
from contracts.names import tag
from contracts.references import ModelManifest
from contracts.settings import load_settings, variable
from serving.model import PackagedModel, Predictions, read_manifest
from serving.user_code import pack, unpack
from steps.archive import Archive
from steps.dataset import has_dataset, read_table
from steps.judging.assessment import References, references
from steps.own_environment import score
from steps.own_packages import activate, bring, read_lock
from steps.provenance import CodeState, retrain_code
from steps.rebuild import Rebuilt, Trainer, rebuild, scratch_world
from steps.recorded_code import Code, recorded_code, today_code
from steps.recorded_environment import ABOUT_MACHINE, Environment, recorded_environment, today_environment
from steps.splitting import read_split
from steps.table.digest import TableDigest
from steps.tracking import DIFF, LOCK, MACHINE, PACKAGES, USER_CODE, RunRecord
from steps.world import World

LOG = logging.getLogger("retrain")
PREDICTION = "prediction"
_LABELS = {"cpu": "CPU", "python": "Python", "system": "operating system"}


class Answer(StrEnum):
    """What the comparison of the predictions came to."""

    IDENTICAL = "identical"
    WITHIN_TOLERANCE = "within tolerance"
    DIFFERS = "differs"


class Difference(Contract):
    """One thing that came out, or was, otherwise."""

    what: str
    kept: str
    rebuilt: str

    def __str__(self) -> str:
        return f"{self.what}: {self.kept or 'unknown'}, rebuilt {self.rebuilt or 'unknown'}"


class ColumnDifference(Contract):
    """A column of the answers that is not the same to the bit."""

    column: str
    rows: int = Field(description="Test rows in which it differs.")
    largest: float | None = Field(None, description="Largest difference; None for labels, and where one side is NaN.")

    def __str__(self) -> str:
        return f"{self.column} in {self.rows:,} rows" + (f", by up to {self.largest:.3g}" if self.largest else "")


class Reproduction(Contract):
    """Whether a version could be built again, and how close its answers are."""

    model: str
    version: int
    run_id: str
    answer: Answer
    rows: int = Field(description="Test rows on which the answers were compared.")
    largest_difference: float | None = Field(
        description="Of any probability or predicted value; None: they can't be compared."
    )
    tolerance: float = Field(description="training.reproduce_tolerance of the kept pipeline file.")
    columns: tuple[ColumnDifference, ...] = Field((), description="Columns of the answers that differ.")
    differences: tuple[Difference, ...] = Field((), description="References that came out otherwise.")
    commit: str = Field(description="Commit of retrain that trained again; empty: unknown.")
    environment: str = Field(description="`today's`, or `its own`: made from the kept lock file.")
    not_restored: tuple[Difference, ...] = Field((), description="What was not as when the version was trained.")
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Recorded:
    """What a run says of how it was trained."""

    run: RunRecord
    refers: References
    code: CodeState
    lock_sha256: str
    lock: Path | None
    packages: str
    """The lock of the packages of the user's own modules."""
    machine: Mapping[str, str]


def reproduce(
    archive: Archive, name: str, folder: Path, *, here: bool = False, tell: Callable[[str], None] = lambda _: None
) -> Reproduction:
    """Rebuild the version that `name` names, in `folder`, and compare.

    Parameters
    ----------
    here
        Rebuild with today's code and libraries, whatever the version was trained by.
    tell
        Hears what is done, where that takes longer.

    Raises
    ------
    ConfigError, DataError
        Something that it needs was removed, is damaged, or is not on this machine.
    NetworkError
        The package index did not answer.
    """
    version = archive.version(name)
    run_id = archive.registry.run_of(version)
    kept = archive.world(run_id, folder)
    recorded = _recorded(archive, kept.tracking.record(run_id), folder)
    if not has_dataset(kept, recorded.refers.dataset) and (removed := archive.removal(run_id)):
        raise removed
    found = list(_check_dataset(kept, recorded.refers))
    code, environment = _restore(recorded, retrain_code(kept.settings), folder, here, tell)
    own = bring(kept.settings, recorded.packages)

    world = scratch_world(kept, folder / "scratch")
    modules = _user_code(archive, kept, recorded.run, world)
    trainer = Trainer(code.folder, environment.interpreter, code.commit, recorded.run.params.get("threads", ""), own)
    rebuilt = rebuild(world, trainer, recorded.refers, modules, folder / "scratch")
    found += _compare_references(recorded.run, rebuilt, kept.storage.read(modules) if modules else b"")

    packages = kept.tracking.package(run_id, folder / "kept"), rebuilt.package
    before, after = (read_manifest(package) for package in packages)
    test = read_table(kept, recorded.refers.dataset, [column.name for column in before.columns])
    test = test.filter(read_split(kept, recorded.refers.split).mask("test"))
    differing: tuple[ColumnDifference, ...] = ()
    if before.classes == after.classes:
        activate(own)
        answers = [_answers(p, test, environment, folder / f"score-{n}") for n, p in enumerate(packages)]
        differing = tuple(compare(before, *answers))
    else:
        found.append(Difference(what="classes", kept=", ".join(before.classes), rebuilt=", ".join(after.classes)))
    tolerance = kept.pipeline.training.reproduce_tolerance
    numbers = [column.largest for column in differing if not (before.classes and column.column == PREDICTION)]
    comparable = before.classes == after.classes and None not in numbers
    largest = max((n for n in numbers if n is not None), default=0.0) if comparable else None
    return Reproduction(
        model=archive.model,
        version=version,
        run_id=run_id,
        answer=_answer(bool(found), differing, largest, tolerance),
        rows=test.num_rows,
        largest_difference=largest,
        tolerance=tolerance,
        columns=differing,
        differences=tuple(found),
        commit=code.commit,
        environment="today's" if environment.today else "its own",
        not_restored=tuple(_not_restored(recorded, code, environment, rebuilt)),
        notes=(code.note,) if code.note else (),
    )


def compare(manifest: ModelManifest, kept: Predictions, rebuilt: Predictions) -> Iterator[ColumnDifference]:
    """Yield the columns of the answers, as the server and `predict` name them, that are not the same to the bit."""
    if kept.scores is None or rebuilt.scores is None:
        yield from _numbers(PREDICTION, kept.labels, rebuilt.labels)
        return
    if changed := int((kept.labels != rebuilt.labels).sum()):
        yield ColumnDifference(column=PREDICTION, rows=changed)
    for index, name in enumerate(manifest.classes):
        yield from _numbers(f"probability_{name}", kept.scores[:, index], rebuilt.scores[:, index])


def _numbers(column: str, kept: Any, rebuilt: Any) -> Iterator[ColumnDifference]:
    # NaN in the same place is the same answer; in one of the two there is no number for the difference
    gap = np.abs(np.where(np.isnan(kept) & np.isnan(rebuilt), 0.0, kept - rebuilt))
    if rows := int((gap != 0).sum()):
        yield ColumnDifference(column=column, rows=rows, largest=None if np.isnan(gap).any() else float(gap.max()))


def _answer(found: bool, differing: Sequence[ColumnDifference], largest: float | None, tolerance: float) -> Answer:
    if found:
        return Answer.DIFFERS
    if not differing:
        return Answer.IDENTICAL
    # With a tolerance, a label that turns over beside the threshold is within it as its probability is.
    return Answer.WITHIN_TOLERANCE if tolerance and largest is not None and largest <= tolerance else Answer.DIFFERS


def _recorded(archive: Archive, run: RunRecord, folder: Path) -> _Recorded:
    def fetch(artifact: str) -> Path | None:
        return archive.registry.fetch(run.run_id, artifact, folder)

    diff, described = fetch(DIFF), fetch(MACHINE)
    machine = json.loads(described.read_bytes()) if described else {n: run.params.get(n, "") for n in ABOUT_MACHINE}
    return _Recorded(
        run=run,
        refers=references(run),
        code=CodeState(run.tags.get(tag("code_commit"), ""), diff.read_bytes() if diff else b""),
        lock_sha256=run.tags.get(tag("lock_sha256"), ""),
        lock=fetch(LOCK),
        packages=kept.read_text(encoding="utf-8") if (kept := fetch(PACKAGES)) else "",
        machine={name: value for name, value in machine.items() if value},
    )


def _restore(
    recorded: _Recorded, now: CodeState, folder: Path, here: bool, tell: Callable[[str], None]
) -> tuple[Code, Environment]:
    """Bring back code and environment; the code first, which fails sooner."""
    if here:
        return today_code(now, folder / "code"), today_environment()
    code = recorded_code(recorded.code, now, folder / "code")
    if not code.today:
        tell(f"training again with commit {code.commit[:12]}")
    environment = recorded_environment(
        recorded.lock_sha256,
        recorded.lock,
        recorded.machine,
        folder / "environment",
        tell,
        [package.pin for package in read_lock(recorded.packages) if package.wanted()],
    )
    return code, environment


def _check_dataset(kept: World, refers: References) -> Iterator[Difference]:
    """Hash the kept dataset's content again: a changed file is found before anything is trained on it."""
    digest = TableDigest(kept.pipeline.table)
    for batch in read_table(kept, refers.dataset).to_batches():
        digest.update(batch)
    if (now := digest.hexdigest()) != refers.dataset_sha256:
        yield Difference(what="dataset sha256", kept=refers.dataset_sha256, rebuilt=now)


def _user_code(archive: Archive, kept: World, run: RunRecord, world: World) -> str:
    """Return the URI of the user's packed modules, made anew from MLflow's copy when the store has none any more."""
    uri = run.tags.get(tag("code"), "")
    if not uri or kept.storage.exists(uri):
        return uri
    copy = archive.registry.fetch(run.run_id, USER_CODE, kept.scratch)
    if copy is None:
        raise ConfigError(f"the user's modules are gone: {uri}", remedy="restore that object")
    return world.storage.write(
        world.storage.uri("code.zip"), pack(copy, kept.pipeline.user_modules, kept.pipeline.code)
    )


def _compare_references(run: RunRecord, rebuilt: Rebuilt, modules: bytes) -> Iterator[Difference]:
    now = {**rebuilt.references, "user_code": unpack(modules).sha256 if modules else ""}
    for name, value in now.items():
        if (kept := run.tags.get(tag(name), "")) != value:
            yield Difference(what=name.replace("_", " "), kept=kept, rebuilt=value)


def _answers(package: Path, rows: Any, environment: Environment, folder: Path) -> Predictions:
    if not environment.today:
        return score(environment.interpreter, package, rows, folder)
    try:
        return PackagedModel.load(package).predict(rows)
    except (StageError, MemoryError):
        raise
    except Exception as error:  # whatever another version of a library raises on reading its model
        raise ConfigError(
            f"the model does not load in today's environment: {type(error).__name__}: {error}"[:300],
            remedy="leave `--here` away, so that it is scored in its own",
        ) from error


def _not_restored(recorded: _Recorded, code: Code, environment: Environment, rebuilt: Rebuilt) -> Iterator[Difference]:
    now = rebuilt.environment
    pairs = {
        "commit": (recorded.code.commit, code.commit),
        "lock file": (recorded.lock_sha256, environment.lock_sha256),
        **{_LABELS.get(name, name): (value, now.get(name, "")) for name, value in recorded.machine.items()},
    }
    for what, (before, after) in pairs.items():
        if before and before != after:
            yield Difference(what=what, kept=before, rebuilt=after)


def main(reference: str) -> int:
    """Build a version again here; leave the answer, as JSON, where the manifest reads it; return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        archive, name = Archive.named(settings, reference)
        with tempfile.TemporaryDirectory(prefix="retrain-") as folder:
            found = reproduce(archive, name, Path(folder), here=True)
    except StageError as error:
        for finding in error.findings:
            LOG.error("  %s", finding)
        LOG.error("%s: %s", error.row.name, error.message)
        return error.row.exit_code
    outputs = Path(os.environ.get(variable("outputs"), names.OUTPUTS_MOUNT))
    outputs.mkdir(parents=True, exist_ok=True)
    (outputs / "answer").write_text(found.model_dump_json(), encoding="utf-8")
    LOG.info("%s version %d: %s", found.model, found.version, found.answer.value)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
