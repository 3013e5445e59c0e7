"""What is looked at before a run, and by which duty: its own rights by all who have such, the rest by the first that
will need it.  Called by the `probe` step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from contracts.access import ACCESS
from contracts.errors import Finding
from contracts.stages import Build, Deploy, Evaluate, Features, Ingest, Need, Probe, Register, Train
from steps.probes import pipeline, places
from steps.world import World

Check = Callable[[Probe.Inputs, World], Iterator[Finding]]

_BY_NEED: dict[Need, Check] = {
    Need.SOURCE: places.check_source,
    Need.STORE: places.check_store,
    Need.TRACKING: places.check_tracking,
    Need.LEDGER: places.check_ledger,
    Need.IMAGES: places.check_images,
    Need.SERVER: places.check_server,
    Need.HOSTS: places.check_hosts,
}
_BY_DUTY: dict[str, tuple[Check, ...]] = {
    Ingest.name: (places.check_disk,),
    Features.name: (pipeline.check_features,),
    Train.name: (pipeline.check_packages, pipeline.check_code, pipeline.check_libraries),
    Register.name: (places.check_signing,),
}
_NOTES: dict[str, tuple[Check, ...]] = {
    Train.name: (pipeline.library_notes, pipeline.sensitive_notes),
    Evaluate.name: (pipeline.environment_notes,),
    Build.name: (places.image_notes,),
    Deploy.name: (places.server_notes,),
}


def own_checks_of(duty: str) -> tuple[Check, ...]:
    """Return the checks of what the duty reaches, with its own rights."""
    return tuple(check for need, check in _BY_NEED.items() if need in ACCESS[duty].needs)


def checks_of(duty: str) -> tuple[Check, ...]:
    """Return the checks that this duty does for the run, whoever's rights they are done with."""
    return _BY_DUTY.get(duty, ())


def notes_of(duty: str) -> tuple[Check, ...]:
    """Return what tells of things that are worth a note, and stop nothing."""
    return _NOTES.get(duty, ())
