"""Say what image serves a version.  Called as the `build` stage; at the desk it is the reference image.

Where the setting `build` is `kaniko`, this stage only writes the build context; the graph's next container pushes the
image and hands on its digest.  Same version and base, same context, byte for byte, and same tag: what the registry has
under it is not built again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile

from contracts.errors import ConfigError, Finding
from contracts.names import MODEL_KEYS, tag
from contracts.references import ModelManifest
from contracts.settings import Settings, variable
from contracts.stages import Build
from steps.images import digest, pinned
from steps.signing import proof
from steps.world import World

REFERENCE = "reference"


def build(inputs: Build.Inputs, *, world: World) -> Build.Outputs:
    """Answer `reference`, or write a build context and say where its image goes.

    Raises
    ------
    DataError
        What lies in the store is not the package that was signed.
    ConfigError
        When Kaniko is asked for and the settings lack a registry, or a base image by digest.
    NetworkError
        When the registry does not answer.
    """
    if world.settings.build == REFERENCE:
        return Build.Outputs(image=REFERENCE, summary=f"the reference image serves version {inputs.version}")
    from serving.model import read_manifest  # with numpy; at the desk there is nothing to read

    require_images(world.settings)
    run_id = world.registry.run_of(inputs.version)
    base = serving_base(world, run_id)
    package = world.tracking.package(run_id, world.scratch)
    proof(package, run_id, world=world)
    keys = world.settings.model_keys
    files = {"Dockerfile": dockerfile(base, read_manifest(package), inputs.version, run_id, keys).encode()}
    for file in package.rglob("*"):
        if file.is_file():
            files[f"model/{file.relative_to(package).as_posix()}"] = file.read_bytes()
    context = pack(files)
    sha256 = hashlib.sha256(context).hexdigest()
    place = repository(world)
    name = f"{run_id}-{sha256[:12]}"
    if built := digest(place, name, world.settings):
        image = f"{place}@{built}"
        return Build.Outputs(image=image, summary=f"{image} was built before from the same model and base")
    uri = world.storage.write(world.storage.uri("builds", sha256, "context.tar.gz"), context)
    return Build.Outputs(
        context=uri,
        destination=f"{place}:{name}",
        plain_http=place.partition("/")[0] if world.settings.insecure_registry else "",
        summary=f"{place}:{name} is to be built",
    )


def repository(world: World) -> str:
    """Return where the images of a pipeline's versions are."""
    return f"{world.settings.image_registry.rstrip('/')}/{world.pipeline.name}"


def serving_base(world: World, run_id: str) -> str:
    """Return what serves a run's model, or is built on: for a model with packages of its own the image that has them.

    That one was made when the run was submitted; the others follow the settings, and so their upgrades.  Without a run
    it is that of the settings.
    """
    tags = world.tracking.record(run_id).tags if run_id else {}
    own = tags.get(tag("serving_image"), "") if tags.get(tag("packages_sha256")) else ""
    return own or world.settings.serving_image


def require_images(settings: Settings) -> None:
    """Refuse to build without knowing from what and where to."""
    needed = {"image_registry": settings.image_registry, "serving_image": settings.serving_image}
    missing = [
        Finding(where=variable(field), what="is missing", remedy="RETRAIN_BUILD=kaniko needs it")
        for field, value in needed.items()
        if not value
    ]
    if settings.serving_image and not pinned(settings.serving_image):
        what = f"{settings.serving_image} is a name that may mean another image tomorrow"
        missing.append(Finding(where=variable("serving_image"), what=what, remedy="name it by digest: ...@sha256:..."))
    if missing:
        raise ConfigError("no image can be built", findings=missing)


def dockerfile(base: str, manifest: ModelManifest, version: int, run_id: str, keys: str) -> str:
    """Return the Dockerfile of an image that serves one version and says which, signed by one of these keys."""
    command = [
        "python", "-m", "serving", "--package", "/model", "--name", manifest.pipeline, "--version", str(version),
        "--run-id", run_id, "--dataset-sha256", manifest.dataset_sha256, "--host", "0.0.0.0",  # noqa: S104  in a pod
    ]  # fmt: skip
    return f"FROM {base}\nCOPY model /model\nENV {MODEL_KEYS}={json.dumps(keys)}\nCMD {json.dumps(command)}\n"


def pack(files: dict[str, bytes]) -> bytes:
    """Return a gzipped tar of `files`, the same bytes whenever and wherever it is made."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as tar,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
