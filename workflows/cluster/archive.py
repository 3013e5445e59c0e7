"""Questions about versions, answered in the cluster, where ledger, MLflow and store are.

Called by `lineage`, `reproduce` and `doctor` when they are asked about a cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from contracts.access import ASK
from contracts.errors import ConfigError
from contracts.pipeline.operation import Resources
from contracts.settings import size
from contracts.stages import Train
from workflows.cluster import job
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer
from workflows.duties import ANSWER
from workflows.local.state import RunState
from workflows.reproduction import reproduction

if TYPE_CHECKING:
    from steps.lineage import Lineage
    from steps.reproduce import Reproduction

_LINEAGE = """
from datetime import datetime
from contracts.settings import load_settings
from steps.archive import Archive
from steps.lineage import lineage
moment = map(datetime.fromisoformat, sys.argv[2:])
print(patiently(lambda: lineage(*Archive.named(load_settings(), sys.argv[1]), *moment)).model_dump_json())
"""
_TRAINED = """
import json, tempfile
from pathlib import Path
from contracts.errors import ConfigError
from contracts.settings import load_settings
from contracts.stages import Train
from steps.archive import Archive
from steps.lineage import lineage
from steps.tracking import PIPELINE

def own_size(archive, run, folder):
    try:
        return archive.world(run, folder).pipeline.resources.get(Train.name)
    except ConfigError:
        if archive.registry.fetch(run, PIPELINE, folder) is None:
            raise
        return None  # a file of another retrain, which the version's image reads

def look():
    archive, name = Archive.named(load_settings(), sys.argv[1])
    found = lineage(archive, name)
    with tempfile.TemporaryDirectory() as folder:
        own = own_size(archive, found.run_id, Path(folder))
    return [each and each.model_dump(mode="json") for each in (found, own)]

print(json.dumps(patiently(look)))
"""
_AGREEMENT = """
import json
from contracts.names import ALIAS_PRODUCTION
from contracts.settings import load_settings
from steps.approvals import unauthenticated, vouched
from steps.ledger import Ledger
from steps.registry import Registry
from steps.rollout.kubernetes import serving_version

settings = load_settings()
ledger = Ledger(settings.ledger.get_secret_value())

def look(model):
    standing, entries = ledger.standing(model), ledger.entries(model)
    given, doubtful = unauthenticated(entries)
    return {
        "model": model,
        "entries": len(entries),
        "given": given,
        "doubtful": doubtful,
        "vouched": vouched(entries),
        "broken": [str(finding) for finding in ledger.verify(model)],
        "serving": standing.serving.version if standing.serving else None,
        "releasing": standing.releasing.version if standing.releasing else None,
        "releasing_in": standing.releasing.workflow if standing.releasing else "",
        "alias": Registry(settings, model).alias(ALIAS_PRODUCTION),
        "answers": serving_version(settings, model),
    }

print(json.dumps(patiently(lambda: [look(model) for model in ledger.models()])))
"""
_NO_IMAGE = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


def lineage(namespace: Namespace, reference: str, at: datetime | None = None) -> Lineage:
    """Return what made a version, as it was at a moment where one is given; raises as `errand`."""
    from steps.lineage import Lineage

    return Lineage.model_validate(answer(namespace, ASK, _LINEAGE, reference, *([at.isoformat()] if at else [])))


@dataclass(frozen=True)
class Agreement:
    """What ledger, MLflow and serving each say of one model; a version is None where there is none."""

    model: str
    entries: int
    broken: list[str]
    """What is wrong with the chain of entries."""
    given: int
    """So many words of persons are in it."""
    doubtful: list[str]
    """Names of those that nobody vouched for."""
    vouched: list[tuple[str, str, int]]
    """Of the others: the word's name in the cluster, who gave it, and on what version."""
    serving: int | None
    releasing: int | None
    releasing_in: str
    """The workflow that began the release."""
    alias: int | None
    answers: int | None
    """The version that the Deployment has servers of."""


def agreements(namespace: Namespace) -> list[Agreement]:
    """Return it of each model in the ledger; raises as `errand`."""
    return [Agreement(**one) for one in answer(namespace, ASK, _AGREEMENT)]


def reproduce(namespace: Namespace, reference: str, tell: Callable[[str], None]) -> Reproduction:
    """Build a version again by a Workflow on its recorded image; wait, and return the answer.

    Raises
    ------
    ConfigError
        The version names no image, the image is gone, or the pipeline file is that was kept with it.
    StageError
        As the stages do that train again.
    """
    from steps.lineage import Lineage
    from steps.reproduce import Reproduction

    about, own = answer(namespace, ASK, _TRAINED, reference)
    found = Lineage.model_validate(about)
    image = found.code.steps_image
    if not image:
        raise ConfigError(
            f"version {found.version} of {found.model} names no image that it was trained in",
            remedy="`retrain reproduce` without -n builds it again where its store and MLflow can be reached",
        )
    name = job.unique("retrain-reproduce")
    had = Resources.model_validate(own) if own else _size_of_environment(namespace)
    namespace.create(reproduction(name, image, f"{found.model}@{found.version}", had))
    tell(f"{name} trains version {found.version} of {found.model} again in {image}")

    def look(run: RunState) -> None:
        for node in run.nodes.values():
            if node.phase == "Pending" and any(sign in node.message for sign in _NO_IMAGE):
                namespace.delete("Workflow", name)
                raise ConfigError(
                    f"the image of version {found.version} cannot be had: {node.message[:300]}",
                    remedy=f"bring {image} back to the registry",
                )

    ended = job.succeeded(namespace, name, look)
    return Reproduction.model_validate_json(
        next(n.outputs[ANSWER] for n in ended.nodes.values() if n.outputs.get(ANSWER))
    )


def _size_of_environment(namespace: Namespace) -> Resources:
    memory, cpu = (int(namespace.settings[size(Train.name, what)]) for what in ("memory", "cpu"))
    return Resources(memory_mib=memory, cpu_millicores=cpu)
