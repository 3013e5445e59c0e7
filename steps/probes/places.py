"""Whether what a duty reaches is there, and lets it do what its rights say; what is written for that is taken back."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from contracts.access import ACCESS, DATA, MODELS, STORE, LedgerRole
from contracts.errors import ConfigError, Finding, NetworkError, StageError
from contracts.names import REGISTRY_SECRET
from contracts.settings import variable
from contracts.stages import Probe
from steps.storage import local_path
from steps.world import World

Findings = Iterator[Finding]
_CONNECT_SECONDS = 5


def check_source(inputs: Probe.Inputs, world: World) -> Findings:
    """The source is there and can be read; nothing of it is."""
    from steps.sources import probe

    yield from probe(inputs.source, inputs.as_of, world=world)


def check_store(_: Probe.Inputs, world: World) -> Findings:
    """The store takes what this duty writes and gives what it reads, folder by folder."""
    access = ACCESS[world.duty]
    for path in sorted({*access.read, *access.write}, key=lambda path: (not path.endswith("/reports"), path)):
        if folder := _folder(path, world):
            yield from probed(folder, world, reads=path in access.read, writes=path in access.write)


def probed(folder: str, world: World, *, reads: bool, writes: bool) -> Findings:
    """Write, read and remove an object in a folder of the store, as far as is asked for."""
    uri = f"{folder}/{world.workflow}.{world.duty}.probe"
    try:
        if not writes:
            world.storage.exists(uri)
            return
        world.storage.write(uri, b"probe")
        if reads and world.storage.read(uri) != b"probe":
            yield Finding(where="RETRAIN_STORE", what=f"{folder} does not give back what was written")
        world.storage.delete(uri)
    except StageError as error:  # told of the folder, so that who finds the same says the same
        place = folder if isinstance(error, ConfigError) else world.storage.root
        raise type(error)(error.message.replace(uri, place), remedy=error.remedy) from None


def check_disk(_: Probe.Inputs, world: World) -> Findings:
    """There is room for work in progress, and for the store where it is a folder."""
    folders = {"scratch": Path(tempfile.gettempdir())}
    if store := local_path(world.settings.store):
        store.mkdir(parents=True, exist_ok=True)
        folders["store"] = store
    for name, folder in folders.items():
        free = shutil.disk_usage(folder).free // 2**20
        if free < world.settings.min_free_mib:
            yield Finding(
                where=name,
                what=f"{free} MiB free, {world.settings.min_free_mib} needed",
                remedy="make room, or lower RETRAIN_MIN_FREE_MIB",
            )


def check_tracking(_: Probe.Inputs, world: World) -> Findings:
    """MLflow answers, takes this duty's credentials, and lets it write what it will."""
    uri = world.settings.tracking_uri
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        from steps.probes.mlflow import mlflow_findings

        yield from mlflow_findings(world)
    elif scheme == "sqlite":
        folder = Path(uri.removeprefix("sqlite:///")).parent
        if not folder.is_dir():
            yield Finding(where="RETRAIN_TRACKING_URI", what=f"the folder of {uri} does not exist", remedy="create it")
    elif scheme not in ("postgresql", "mysql"):
        yield Finding(
            where="RETRAIN_TRACKING_URI",
            what=f"{scheme or 'no scheme'} is not a tracking store with a registry",
            remedy="http(s)://, sqlite:///",
        )


def check_ledger(_: Probe.Inputs, world: World) -> Findings:
    """The ledger can be read, and takes an entry from who appends."""
    if not world.settings.ledger.get_secret_value():
        yield Finding(
            where="RETRAIN_LEDGER", what="is missing", remedy="set the ledger's SQLAlchemy URL in the secrets"
        )
        return
    world.ledger.head(world.pipeline.name)
    if ACCESS[world.duty].ledger is LedgerRole.WRITER:
        world.ledger.try_append()


def check_signing(_: Probe.Inputs, world: World) -> Findings:
    """There is a key to sign models by, and those who verify trust it; at the desk a run's beginning makes it."""
    from steps.signing import signing_key

    if world.settings.signing_key.get_secret_value() or world.settings.deploy_target != "process":
        signing_key(world.settings)
    yield from ()


def check_images(_: Probe.Inputs, world: World) -> Findings:
    """Where images are built, the settings say from what and where to, and the registry answers."""
    if world.settings.build != "kaniko":
        return
    from steps.build import repository, require_images
    from steps.images import shows

    require_images(world.settings)
    shows(repository(world), world.settings)
    yield from ()


def image_notes(_: Probe.Inputs, world: World) -> Findings:
    """Say that a registry wants a login: Kaniko's, of which nobody else knows."""
    from steps.build import repository
    from steps.images import shows

    if world.settings.build != "kaniko" or not world.settings.image_registry:
        return
    with contextlib.suppress(NetworkError):  # `check_images` says so
        if shows(repository(world), world.settings):
            return
        yield Finding(
            where=variable("image_registry"),
            what="it shows its images only after a login, so a model's image is built by each run anew",
            remedy=f"Kaniko logs in by the Secret {REGISTRY_SECRET}, if that is there: docs/release.md",
        )


def check_server(_: Probe.Inputs, world: World) -> Findings:
    """At the desk, the server's port is free, or ours; on a cluster, a release may be made and has room."""
    settings = world.settings
    if settings.deploy_target != "process":
        from steps.probes.release import release_findings

        yield from release_findings(world)
    elif settings.server_home:
        from steps.rollout.process import Server

        if problem := Server.of(settings, world.pipeline.name).port_problem():
            yield problem


def server_notes(_: Probe.Inputs, world: World) -> Findings:
    """Say that nothing will scale where nobody measures, or that nothing keeps a release from others' keys; at the desk
    that a version serves at once.
    """
    if world.settings.deploy_target == "process":
        if world.pipeline.release.gradual:
            what = f"{world.pipeline.release.strategy} needs a cluster: here a version replaces the one before at once"
            yield Finding(where="release.strategy", what=what)
        return
    from steps.probes.release import confinement_notes
    from steps.rollout.cluster import Cluster

    if not Cluster.of(world.settings.serving_namespace).serves("metrics.k8s.io"):
        yield Finding(
            where="cluster", what="has no metrics, so that servers do not scale", remedy="install metrics-server"
        )
    yield from confinement_notes(world)


def check_hosts(_: Probe.Inputs, world: World) -> Findings:
    """Apprise knows every notification URL, and its host takes connections; no URL is shown."""
    urls = world.settings.notify_urls.get_secret_value().split()
    if not urls:
        return
    import apprise

    for number, url in enumerate(urls, 1):
        service = apprise.Apprise.instantiate(url)
        if service is None:
            yield Finding(
                where="RETRAIN_NOTIFY_URLS", what=f"URL {number} is not one that Apprise knows", remedy="mend it"
            )
        elif address := _address(service):
            _connect(*address, number)


def _folder(path: str, world: World) -> str:
    """Return the URI of what the table of rights calls ``bucket`` or ``bucket/folder``, empty where it is no affair."""
    if path == DATA:  # `check_source` looks there
        return ""
    if path == MODELS:
        return world.settings.artifacts.rstrip("/")
    return world.storage.uri(path.removeprefix(f"{STORE}/"))


def _address(service: object) -> tuple[str, int] | None:
    """Return host and port of a service that says them: one's own, or those of its public address."""
    host = getattr(service, "smtp_host", None) or getattr(service, "host", None)
    if host:
        return str(host), int(getattr(service, "port", None) or (443 if getattr(service, "secure", False) else 80))
    public = urlsplit(str(getattr(service, "notify_url", "")))
    return (public.hostname, public.port or 443) if public.hostname and "{" not in public.netloc else None


def _connect(host: str, port: int, number: int) -> None:
    import socket

    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise NetworkError(
            f"the host of URL {number} of RETRAIN_NOTIFY_URLS does not answer: {type(error).__name__}",
            remedy="is it right, and among the hosts that the network policy of notify allows?",
        ) from None
