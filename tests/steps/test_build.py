"""The build stage: the reference image at the desk, a reproducible Kaniko context elsewhere."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from contracts.errors import ConfigError, DataError, NetworkError
from contracts.metrics import Task
from contracts.pipeline import load_pipeline
from contracts.references import ModelManifest
from contracts.settings import Settings
from contracts.stages import Build
from serving.model_keys import trusted
from serving.signature import check
from steps.build import build
from steps.storage import Storage
from steps.tracking import RunRecord
from steps.world import World
from tests.loopback import Handler, serving
from tests.model_packages import TRUSTED, signed

MANIFEST = ModelManifest(
    pipeline="adult-income", task=Task.BINARY, columns=(), estimator="lightgbm", dataset_sha256="d" * 64,
    transform_sha256="7" * 64, candidate="lightgbm",
)  # fmt: skip
BASE = "base@sha256:" + "1" * 64
ASKED = Build.Inputs(version=3)
ADULT = Path(__file__).parents[2] / "adult.yaml"


def make_world(folder: Path, **settings: Any) -> World:
    settings = {"model_keys": TRUSTED, **settings}
    store = {"store": (folder / "store").as_uri(), "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"}
    return World(settings=Settings(**store, **settings), pipeline=load_pipeline(ADULT), pipeline_path=ADULT)


class Runs:
    """Version 3 is run r3, whose package lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tags: dict[str, str] = {}

    def run_of(self, version: int) -> str:
        return f"r{version}"

    def package(self, run_id: str, folder: Path) -> Path:
        return self.folder

    def record(self, run_id: str) -> RunRecord:
        return RunRecord(run_id, "FINISHED", datetime.now(UTC), {}, {}, self.tags, "")


def test_at_the_desk_the_reference_image_serves(tmp_path: Path) -> None:
    outputs = build(ASKED, world=make_world(tmp_path))

    assert (outputs.image, outputs.context, outputs.destination) == ("reference", "", "")


def test_kaniko_without_registry_is_a_config_error_that_names_both_settings(tmp_path: Path) -> None:
    world = make_world(tmp_path, build="kaniko")

    with pytest.raises(ConfigError) as caught:
        build(ASKED, world=world)

    assert {f.where for f in caught.value.findings} == {"RETRAIN_IMAGE_REGISTRY", "RETRAIN_SERVING_IMAGE"}


class ImageRegistry(Handler):
    """Answers HEAD for the tags that it has, and 503 while it is down."""

    tags: ClassVar[dict[str, str]]
    down: ClassVar[bool]
    host: ClassVar[str]

    def do_HEAD(self) -> None:
        found = self.tags.get(self.path)
        self.send_response(503 if self.down else 200 if found else 404)
        if found:
            self.send_header("Docker-Content-Digest", found)
        self.end_headers()


@pytest.fixture
def registry() -> Iterator[type[ImageRegistry]]:
    ImageRegistry.tags, ImageRegistry.down = {}, False
    with serving(ImageRegistry) as port:
        ImageRegistry.host = f"127.0.0.1:{port}"
        yield ImageRegistry


def packaged(tmp_path: Path, registry: type[ImageRegistry]) -> World:
    package = tmp_path / "package"
    package.mkdir()
    (package / "package.json").write_text(MANIFEST.model_dump_json())
    signed(package, "adult-income@r3")
    world = make_world(
        tmp_path, build="kaniko", image_registry=f"{registry.host}/ml", insecure_registry=True, serving_image=BASE
    )
    world.registry = world.tracking = Runs(package)  # type: ignore[assignment]  # both answer from one folder
    return world


def test_the_same_model_and_base_are_not_built_twice(tmp_path: Path, registry: type[ImageRegistry]) -> None:
    world = packaged(tmp_path, registry)
    first = build(ASKED, world=world)
    tag = first.destination.rpartition(":")[2]
    registry.tags[f"/v2/ml/adult-income/manifests/{tag}"] = "sha256:" + "b" * 64

    again = build(ASKED, world=world)

    assert (again.image, again.context, again.destination) == (
        f"{registry.host}/ml/adult-income@sha256:{'b' * 64}", "", "",
    )  # fmt: skip
    world.settings = world.settings.model_copy(update={"serving_image": BASE.replace("1", "2")})
    assert build(ASKED, world=world).destination, "another base is another image"


def test_the_context_has_the_signature_and_the_image_the_keys_that_are_trusted(
    tmp_path: Path, registry: type[ImageRegistry]
) -> None:
    world = packaged(tmp_path, registry)
    asked = build(ASKED, world=world)

    with tarfile.open(fileobj=io.BytesIO(Storage(world.settings).read(asked.context))) as tar:
        tar.extractall(tmp_path / "context", filter="data")
    assert check(tmp_path / "context" / "model", "adult-income@r3", trusted(TRUSTED))
    assert f'ENV RETRAIN_MODEL_KEYS="{TRUSTED}"\n' in (tmp_path / "context" / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("deed", "says"),
    [
        (lambda folder: (folder / "model.sig").unlink(), "is not signed"),
        (
            lambda folder: (folder / "package.json").write_text(MANIFEST.model_dump_json(indent=1)),
            "not the one that was",
        ),
        (lambda folder: (folder / "packages.lock").write_text("evil==1"), "packages.lock, which its manifest"),
    ],
)
def test_no_image_is_built_of_what_was_not_signed(
    tmp_path: Path, registry: type[ImageRegistry], deed: Callable[[Path], object], says: str
) -> None:
    world = packaged(tmp_path, registry)
    deed(tmp_path / "package")
    with pytest.raises(DataError, match=says):
        build(ASKED, world=world)
    assert not list((tmp_path / "store").rglob("context.tar.gz"))


def test_a_model_with_packages_of_its_own_is_built_on_the_image_that_has_them(
    tmp_path: Path, registry: type[ImageRegistry]
) -> None:
    world = packaged(tmp_path, registry)
    of_the_settings = build(ASKED, world=world)
    runs: Any = world.registry

    runs.tags = {"retrain.serving_image": "own@sha256:1"}
    assert build(ASKED, world=world) == of_the_settings, "without packages the settings decide, and so an upgrade"
    runs.tags["retrain.packages_sha256"] = "a" * 64
    asked = build(ASKED, world=world)

    with tarfile.open(fileobj=io.BytesIO(Storage(world.settings).read(asked.context))) as tar:
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile is not None
        assert dockerfile.read().startswith(b"FROM own@sha256:1\n")


def test_a_registry_that_does_not_answer_is_a_network_error(tmp_path: Path, registry: type[ImageRegistry]) -> None:
    world = packaged(tmp_path, registry)
    registry.down = True

    with pytest.raises(NetworkError, match="answered 503"):
        build(ASKED, world=world)


def test_a_base_without_a_digest_is_refused(tmp_path: Path, registry: type[ImageRegistry]) -> None:
    world = packaged(tmp_path, registry)
    world.settings = world.settings.model_copy(update={"serving_image": "base:latest"})

    with pytest.raises(ConfigError) as caught:
        build(ASKED, world=world)

    assert "by digest" in str(caught.value.findings[0])


def test_kaniko_gets_a_context_with_the_package_and_a_tag_from_the_run(
    tmp_path: Path, registry: type[ImageRegistry]
) -> None:
    package = tmp_path / "package"
    (package / "user").mkdir(parents=True)
    (package / "user" / "rows.py").write_bytes(b"x = 1\n")
    files = {"user/rows.py": hashlib.sha256(b"x = 1\n").hexdigest()}
    (package / "package.json").write_text(MANIFEST.model_copy(update={"files": files}).model_dump_json())
    signed(package, "adult-income@r3")
    world = make_world(
        tmp_path, build="kaniko", image_registry=f"{registry.host}/ml/", insecure_registry=True, serving_image=BASE
    )
    world.registry = world.tracking = Runs(package)  # type: ignore[assignment]  # both answer from one folder

    first, again = build(ASKED, world=world), build(ASKED, world=world)

    assert first == again
    sha256 = first.context.split("/")[-2]
    assert (first.image, first.destination) == ("", f"{registry.host}/ml/adult-income:r3-{sha256[:12]}")
    with tarfile.open(fileobj=io.BytesIO(Storage(world.settings).read(first.context))) as tar:
        assert tar.getnames() == ["Dockerfile", "model/model.sig", "model/package.json", "model/user/rows.py"]
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile is not None
        text = dockerfile.read().decode()
    assert text.startswith(f"FROM {BASE}\nCOPY model /model\n")
    assert '"--version", "3", "--run-id", "r3"' in text
