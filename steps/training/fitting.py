"""One candidate, fitted: its trials, and a folder with the best one and all that choosing and packaging ask of it.

Called by `fit`, which brings the folder into the store, and by `train`, which takes it from there or makes it itself:
either way the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, ValidationError

from contracts.base import Contract, Sha256
from contracts.errors import ConfigError
from contracts.pipeline.learning import Candidate
from serving.estimators import FORMATS
from steps import provenance
from steps.candidates import Problem
from steps.candidates.choice import all_metrics, try_candidate
from steps.candidates.search import trials
from steps.training.material import Material, Sides
from steps.world import World

FIT_FILE = "fit.json"


class Fit(Contract):
    """``fit.json``, beside the estimator in its own format."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    candidate: str
    train_key: Sha256
    kind: str
    estimator_sha256: Sha256
    trial: int
    rounds: int | None
    threshold: float | None
    values: tuple[float, ...]
    """The choosing metric on validation rows, of each trial."""
    metrics: dict[str, dict[str, float]]
    """Side -> every metric of the task."""


@dataclass(frozen=True)
class Contender:
    """A fitted candidate and the folder that holds it."""

    candidate: Candidate
    fit: Fit
    folder: Path

    @property
    def kind(self) -> str:
        """How the estimator is stored."""
        return self.fit.kind

    @property
    def value(self) -> float:
        """The choosing metric on validation rows."""
        return self.fit.values[self.fit.trial]

    @property
    def parameters(self) -> dict[str, Any]:
        """What the best trial was given."""
        given: dict[str, Any] = self.history[self.fit.trial]["parameters"]
        return given

    @property
    def history(self) -> list[dict[str, Any]]:
        """Candidate, number, parameters and value of every trial."""
        return [
            {"candidate": self.candidate.name, "trial": number, "parameters": parameters, "value": value}
            for number, (parameters, value) in enumerate(zip(trials(self.candidate), self.fit.values, strict=False))
        ]

    def save(self, folder: Path, trusted: Sequence[str] = ()) -> None:  # noqa: ARG002  looked at when it was fitted
        """Copy the estimator."""
        shutil.copyfile(self.folder / FORMATS[self.kind].file, folder / FORMATS[self.kind].file)


def problem_of(material: Material, world: World) -> Problem:
    """Return what is to be learned."""
    training = world.pipeline.training
    return Problem(
        task=world.pipeline.target.task,
        classes=len(material.classes.values),
        metric=training.metric,
        feature_names=material.recipe.feature_names,
        categorical=material.recipe.categorical,
        cardinalities=material.recipe.cardinalities,
        seed=training.seed,
        threads=provenance.threads(world.settings),
        code=material.code,
    )


def fit_candidate(
    candidate: Candidate, problem: Problem, sides: Sides, key: str, folder: Path, world: World
) -> Contender:
    """Try a candidate's parameters and save its best trial into `folder`.

    Raises
    ------
    ConfigError
        When a parameter does not fit, or the estimator can't be saved without pickle: whoever wins, not only on the
        day that it wins.
    """
    training, rule = world.pipeline.training, world.pipeline.target.threshold
    tried = try_candidate(problem, candidate, rule, sides.train, sides.validation, world.log.info)
    best, estimator = tried.best, tried.best.fitted.estimator
    folder.mkdir(parents=True, exist_ok=True)
    try:
        estimator.save(folder, training.trusted_types)
    except ConfigError as error:
        message = f"candidate {candidate.name}: {error.message}"
        raise ConfigError(message, findings=error.findings, remedy=error.remedy) from error
    fit = Fit(
        candidate=candidate.name,
        train_key=key,
        kind=estimator.kind,
        estimator_sha256=_sha256(folder / estimator.file),
        trial=best.number,
        rounds=best.fitted.rounds,
        threshold=best.threshold,
        values=tried.values,
        metrics={
            "validation": all_metrics(problem, sides.validation, best, best.scores),
            "train": all_metrics(problem, sides.train, best, best.fitted.train_scores),
        },
    )
    (folder / FIT_FILE).write_text(fit.model_dump_json(), encoding="utf-8")
    return Contender(candidate, fit, folder)


def put(contender: Contender, world: World) -> str:
    """Bring a fitted candidate into the store, and return the URI of its folder, which ends in its hash."""
    uri = world.storage.uri("fits", world.workflow, _sha256(contender.folder / FIT_FILE))
    for name in (FORMATS[contender.kind].file, FIT_FILE):  # whoever sees the second finds the first
        world.storage.upload(contender.folder / name, f"{uri}/{name}")
    return uri


def get(uri: str, candidates: Mapping[str, Candidate], key: str, world: World) -> Contender | None:
    """Return a fitted candidate of the store, None when it is gone.

    Raises
    ------
    ConfigError
        It is damaged, or of another training.
    """
    if not world.storage.exists(f"{uri}/{FIT_FILE}"):
        return None
    folder = world.scratch / uri.rpartition("/")[2]
    folder.mkdir(exist_ok=True)
    content = world.storage.read(f"{uri}/{FIT_FILE}")
    try:
        fit = Fit.model_validate_json(content)
        file = FORMATS[fit.kind].file
    except (ValidationError, KeyError):
        raise ConfigError(f"{uri} holds no fitted candidate", remedy="run again") from None
    shutil.copyfile(world.storage.fetch(f"{uri}/{file}", folder), folder / file)
    whole = hashlib.sha256(content).hexdigest() == folder.name and _sha256(folder / file) == fit.estimator_sha256
    if not whole or fit.train_key != key or fit.candidate not in candidates:
        what = "is of another training" if whole else "is damaged"
        raise ConfigError(f"the fitted candidate at {uri} {what}", remedy="run again")
    return Contender(candidates[fit.candidate], fit, folder)


def remove(uris: Sequence[str], world: World) -> None:
    """Remove fitted candidates from the store."""
    for uri in uris:
        for each in world.storage.list(uri):
            world.storage.delete(each)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
