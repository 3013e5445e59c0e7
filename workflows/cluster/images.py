"""Images of the steps and of the server with the packages that a pipeline's own modules need.  Called by `submit`.

The packages are resolved and their wheels fetched on the machine that submits; Kaniko installs them in the cluster on
top of the platform's images, without an index.  An image is named by the hash of what it is made from, base and wheels,
so it is built once, whoever asks for it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contracts.access import KANIKO, SUBMIT
from contracts.errors import CONFIG, RESOURCES, ConfigError
from contracts.pipeline import Pipeline
from contracts.references import PACKAGES_FILE
from contracts.settings import variable
from contracts.stages import Build
from steps.build import pack
from steps.own_environment import install_environment, run
from steps.own_packages import FOLDER, SERVING_LOCK, OwnPackage, read_lock, resolve, without
from steps.reuse import LOCK_FILE
from workflows.cluster import job
from workflows.cluster.connection import Namespace
from workflows.cluster.errand import answer
from workflows.cluster.submission import put
from workflows.kaniko import NOT_UNPACKED

BASES = {"steps-image": LOCK_FILE, "serving-image": SERVING_LOCK}
"""Workflow parameter of an image, and the lock of what it holds."""
_AS_UV = {
    "UV_INDEX_URL": "PIP_INDEX_URL", "UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_EXTRA_INDEX_URL": "PIP_EXTRA_INDEX_URL",
    "UV_FIND_LINKS": "PIP_FIND_LINKS",
}  # fmt: skip
"""uv cannot download a wheel; pip, which can, looks where uv does, unless it was told otherwise."""
_OLDEST_LIBC = 5
_MEMORY_MIB = 2048
"""Kaniko unpacks the base, as it runs a program in it."""
_SHORT = 32
_TELLING = ("^ERROR: ", "(?i)error")
"""What is wrong in the log of a build: the installer says more than Kaniko, which ends with it."""
_OR_ITS_CLASS = f"|| exit $(( $? > 128 ? {RESOURCES.exit_code} : {CONFIG.exit_code} ))"
"""Kaniko ends as what it runs.  What does not install never will; a process that was killed had too little memory."""

_DESCRIBE = """
import json, platform
python = ".".join(platform.python_version_tuple()[:2])
print(json.dumps({"python": python, "machine": platform.machine(), "libc": platform.libc_ver()[1]}))
"""
_FIND = """
import json
from contracts.settings import load_settings
from steps.images import digest
settings = load_settings()
print(json.dumps({name: patiently(lambda: digest(*name.rsplit(":", 1), settings)) for name in sys.argv[1:]}))
"""


@dataclass(frozen=True)
class Target:
    """What the images run on, as one of their pods says."""

    python: str
    """``3.11``."""
    machine: str
    """``x86_64`` or ``aarch64``."""
    libc: str
    """Version of glibc."""

    @property
    def markers(self) -> dict[str, str]:
        """The environment of markers in requirements."""
        return {
            "python_version": self.python, "python_full_version": f"{self.python}.0", "sys_platform": "linux",
            "platform_system": "Linux", "platform_machine": self.machine, "os_name": "posix",
            "implementation_name": "cpython", "platform_python_implementation": "CPython",
        }  # fmt: skip

    @property
    def platforms(self) -> list[str]:
        """Platform tags of wheels that fit, the newest first."""
        newest = int(self.libc.partition(".")[2] or _OLDEST_LIBC)
        tags = [f"manylinux_2_{minor}_{self.machine}" for minor in range(newest, _OLDEST_LIBC - 1, -1)]
        return [*tags, f"manylinux2014_{self.machine}", f"linux_{self.machine}"]


def own_images(
    namespace: Namespace, pipeline: Pipeline, template: Mapping[str, Any], home: Path, tell: Callable[[str], None]
) -> dict[str, str]:
    """Return the images of a pipeline's runs that are not the platform's: workflow parameter -> image by digest.

    Parameters
    ----------
    template
        The compiled WorkflowTemplate, which holds Kaniko's container.
    home
        The desk's home on this machine, which keeps locks and wheels.
    tell
        Hears what is done, where that takes longer.

    Raises
    ------
    ConfigError
        The packages do not fit, have no wheels for the cluster, or the platform names no registry.
    NetworkError
        The package index, the registry or the cluster did not answer.
    """
    if not pipeline.packages:
        return {}
    registry = namespace.settings.get(variable("image_registry"), "").rstrip("/")
    if not registry:
        raise ConfigError(
            "images with the packages of a pipeline need a registry, and the platform names none",
            remedy=f"set {variable('image_registry')} in its settings",
        )
    target = Target(**answer(namespace, SUBMIT, _DESCRIBE))
    lock = resolve(pipeline.packages, target.python, home)
    contexts: dict[str, bytes] = {}
    for parameter, installed in BASES.items():
        base = namespace.settings[variable(parameter.replace("-", "_"))]
        missing = without(lock, installed.read_text(encoding="utf-8"))
        folder = wheels([p for p in read_lock(missing) if p.wanted(target.markers)], target, home)
        contexts[parameter] = context(base, lock, folder, on_path=parameter == "serving-image")
    wanted = {name: f"{registry}/{name.removesuffix('-image')}:{tag(packed)}" for name, packed in contexts.items()}
    there = answer(namespace, SUBMIT, _FIND, *wanted.values())
    found = {}
    for name, destination in wanted.items():
        digest = there[destination]
        if not digest:
            tell(f"building {destination} with {', '.join(pipeline.packages)}")
            digest = build(namespace, template, destination, contexts[name])
        found[name] = f"{destination.rpartition(':')[0]}@{digest}"
    return found


def with_images(template: Mapping[str, Any], images: Mapping[str, str]) -> dict[str, Any]:
    """Return a WorkflowTemplate whose runs, whatever starts them, have these images."""
    parameters = [
        {**{key: value for key, value in each.items() if key != "valueFrom"}, "value": images[each["name"]]}
        if each["name"] in images
        else each
        for each in template["spec"]["arguments"]["parameters"]
    ]
    return {**template, "spec": {**template["spec"], "arguments": {"parameters": parameters}}}


def wheels(packages: list[OwnPackage], target: Target, home: Path) -> Path:
    """Return a folder with the wheels of locked packages for a target, fetched by pip unless they are there.

    Raises
    ------
    ConfigError
        One has no wheel for the target, or another hash than it was locked with.
    """
    lines = [f"{package.pin} {' '.join(f'--hash={each}' for each in package.hashes)}\n" for package in packages]
    key = hashlib.sha256(json.dumps([lines, asdict(target)]).encode()).hexdigest()
    folder = home / FOLDER / "wheels" / key
    if folder.is_dir():
        return folder
    part = folder.with_suffix(f".{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        if lines:
            wanted = part / "wanted.txt"
            wanted.write_text("".join(lines), encoding="utf-8")
            platforms = [word for each in target.platforms for word in ("--platform", each)]
            command = [
                sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:",
                "--require-hashes", "--implementation", "cp", "--python-version", target.python, *platforms,
                "--dest", str(part), "-r", str(wanted),
            ]  # fmt: skip
            found = install_environment(os.environ)
            run(command, {pip: found[uv] for uv, pip in _AS_UV.items() if uv in found} | found)
            wanted.unlink()
        if not folder.is_dir():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def context(base: str, lock: str, folder: Path, *, on_path: bool) -> bytes:
    """Return a build context: `base`, and over it the wheels of a folder and the lock, the same bytes each time.

    Parameters
    ----------
    on_path
        Whether every Python of the image looks for them; the steps do it by themselves.
    """
    files = {PACKAGES_FILE: lock.encode(), **{f"wheels/{file.name}": file.read_bytes() for file in folder.iterdir()}}
    names = sorted(name for name in files if name.startswith("wheels/"))
    place = "/opt/packages"
    lines = [f"FROM {base}", f"COPY {PACKAGES_FILE} {place}/{PACKAGES_FILE}"]
    if names:
        # In a stage of its own, so that the wheels are no layer of the image.
        wanted = "".join(f"/{name} --hash=sha256:{hashlib.sha256(files[name]).hexdigest()}\n" for name in names)
        files["wanted.txt"] = wanted.encode()
        files["pip.zip"] = _pip()
        pip = "python /pip.zip/pip install --no-index --no-deps --no-cache-dir --require-hashes"
        lines = [
            f"FROM {base} AS installed", "USER 0:0", "COPY wheels /wheels", "COPY pip.zip /pip.zip",
            "COPY wanted.txt /wanted.txt",
            f"RUN {pip} --root-user-action ignore --target {place} -r /wanted.txt {_OR_ITS_CLASS}",
            *lines, f"COPY --from=installed {place} {place}",
        ]  # fmt: skip
    lines += [f"ENV {variable('packages')}={place}", *([f"ENV PYTHONPATH={place}"] if on_path else [])]
    files["Dockerfile"] = "".join(f"{line}\n" for line in lines).encode()
    return pack(files)


def _pip() -> bytes:
    """Return the pip that is installed here as one file that Python runs: a base need not have one."""
    home = Path(str(find_spec("pip").origin)).parent  # type: ignore[union-attr]  # a dependency of retrain
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(home.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                archive.writestr(zipfile.ZipInfo(file.relative_to(home.parent).as_posix()), file.read_bytes())
    return packed.getvalue()


def tag(packed: bytes) -> str:
    """Return the tag of the image that a context becomes."""
    return f"packages-{hashlib.sha256(packed).hexdigest()[:_SHORT]}"


def build(namespace: Namespace, template: Mapping[str, Any], destination: str, packed: bytes) -> str:
    """Bring a context to the store, let Kaniko build and push it, and return the image's digest.

    Raises
    ------
    StageError
        It was not built, after all attempts: of the class that Kaniko ended with, and with what its log says.
    """
    store = namespace.settings[variable("store")].rstrip("/")
    uri = f"{store}/builds/{hashlib.sha256(packed).hexdigest()}/context.tar.gz"
    put(namespace, {uri: packed})
    plain = namespace.settings.get(variable("insecure_registry"), "").lower() == "true"
    given = {
        "context": uri, "destination": destination, "plain-http": destination.partition("/")[0] if plain else "",
    }  # fmt: skip
    name = job.unique("retrain-packages")
    namespace.create(workflow(name, template, given))
    ended = job.succeeded(namespace, name, what=f"{destination} was not built", telling=_TELLING, kaniko=True)
    return next(
        n.outputs["image"].rpartition("@")[2] for n in ended.nodes.values() if "@" in n.outputs.get("image", "")
    )


def workflow(name: str, template: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """Return the Workflow that runs the compiled template's Kaniko alone."""
    spec = template["spec"]
    kaniko = next(each for each in spec["templates"] if each["name"] == KANIKO)
    arguments = [each for each in kaniko["container"]["args"] if not each.startswith(NOT_UNPACKED)]
    own = {"kaniko-image", *(f"{Build.name}-{what}" for what in ("cpu", "memory"))}
    parameters = [each for each in spec["arguments"]["parameters"] if each["name"] in own - {f"{Build.name}-memory"}]
    parameters.append({"name": f"{Build.name}-memory", "value": str(_MEMORY_MIB)})
    parameters += [{"name": key, "value": value} for key, value in given.items()]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": name},
        "spec": {
            "entrypoint": KANIKO,
            "arguments": {"parameters": parameters},
            "podSpecPatch": spec["podSpecPatch"],
            "templates": [{**kaniko, "container": {**kaniko["container"], "args": arguments}}],
            "ttlStrategy": {"secondsAfterCompletion": 86400},
        },
    }
