"""The desk's target, as `steps.deploy` asks for it: packages from MLflow, served by `steps.rollout.process`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.names import PREDICTIONS
from contracts.references import LedgerEntry
from serving.model import read_manifest, read_packages
from serving.versions import Spec
from steps.own_packages import bring
from steps.rollout.front_door import hear
from steps.rollout.process import Server, Status
from steps.rollout.target import Serving
from steps.signing import proof
from steps.storage import local_path
from steps.world import World


@dataclass(frozen=True)
class Desk:
    """The local server of one pipeline; see `steps.rollout.target.Target`."""

    world: World
    server: Server

    def turn(self) -> AbstractContextManager[None]:
        """Hold the server's own lock."""
        return self.server.turn()

    def means(self, built: str, run_id: str) -> Mapping[str, Any]:
        """Return what `build` said, since no image serves here, and the package's signature."""
        return {"image": built, **proof(self._package(run_id), run_id, world=self.world)}

    def serving(self) -> Serving | None:
        """Return what answers now."""
        status = self.server.status()
        return None if status is None else self._serving(status)

    def release(self, entry: LedgerEntry) -> Serving:
        """Start the version's process and drain the one before."""
        release, records = self.world.pipeline.release, self.world.pipeline.records
        folder = self._package(entry.run_id)
        if (holder := self.server.status()) is not None and holder.outdated:
            proof(folder, entry.run_id, world=self.world)  # what serves is ended for this: so look before
            self.server.stop()
        spec = Spec(
            package=str(folder), name=entry.model, version=entry.version, run_id=entry.run_id,
            dataset_sha256=read_manifest(folder).dataset_sha256,
            packages=bring(self.world.settings, read_packages(folder)), trusted_keys=self.world.settings.model_keys,
            records=self._records_folder if records.share else "", record_share=records.share,
            record_inputs=records.inputs,
        )  # fmt: skip
        status = self.server.release(
            spec,
            ready_seconds=release.ready_timeout.total_seconds(),
            drain_seconds=release.drain_timeout.total_seconds(),
        )
        return self._serving(status)

    def hear(self, entry: LedgerEntry, url: str) -> None:
        """Ask at the front door."""
        hear(url, entry.version)

    def restore(self, entry: LedgerEntry) -> Serving:
        """Leave it where it still serves, else start it as any other."""
        status = self.server.status()
        if status is not None and status.spec is not None and status.spec.version == entry.version:
            return self._serving(status)
        return self.release(entry)

    def stop(self) -> object:
        """End the server."""
        return self.server.stop()

    def _package(self, run_id: str) -> Path:
        return self.world.tracking.package(run_id, self.server.home / "packages")

    @property
    def _records_folder(self) -> str:
        """Return the store's folder; where the store is no folder, one beside the server, which has no credentials."""
        kept = local_path(self.world.storage.uri(PREDICTIONS, self.world.pipeline.name))
        return str(kept or self.server.home / PREDICTIONS)

    def _serving(self, status: Status) -> Serving:
        elsewhere = self.server.port and not status.url.endswith(f":{self.server.port}")
        return Serving(
            url=status.url,
            version=status.spec.version if status.spec is not None else None,
            evidence={"server_pid": status.server_pid},
            note=f" (port {self.server.port} was taken)" if elsewhere else "",
        )
