"""The build stage: the reference image at the desk, a reproducible Kaniko context elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from contracts.metrics import Task
from contracts.pipeline import load_pipeline
from contracts.references import ModelManifest
from contracts.settings import Settings
from contracts.stages import Build
from steps.build import build
from steps.storage import Storage
from steps.world import World

MANIFEST = ModelManifest(
    pipeline="adult-income", task=Task.BINARY, columns=(), estimator="lightgbm", dataset_sha256="d" * 64,
    transform_sha256="7" * 64, candidate="lightgbm",
)  # fmt: skip
ASKED = Build.Inputs(version=3)
ADULT = Path(__file__).parents[2] / "adult.yaml"


def make_world(folder: Path, **settings: str) -> World:
    store = {"store": (folder / "store").as_uri(), "tracking_uri": f"sqlite:///{folder / 'mlflow.db'}"}
    return World(settings=Settings(**store, **settings), pipeline=load_pipeline(ADULT), pipeline_path=ADULT)


class Runs:
    """Version 3 is run r3, whose package lies in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run_of(self, version: int) -> str:
        return f"r{version}"

    def package(self, run_id: str, folder: Path) -> Path:
        return self.folder


def test_at_the_desk_the_reference_image_serves(tmp_path: Path) -> None:
    outputs = build(ASKED, world=make_world(tmp_path))

    assert (outputs.image, outputs.context, outputs.destination) == ("reference", "", "")


def test_kaniko_without_registry_is_a_config_error_that_names_both_settings(tmp_path: Path) -> None:
    world = make_world(tmp_path, build="kaniko")

    with pytest.raises(ConfigError) as caught:
        build(ASKED, world=world)

    assert {f.where for f in caught.value.findings} == {"RETRAIN_IMAGE_REGISTRY", "RETRAIN_SERVING_IMAGE"}


def test_kaniko_gets_a_context_with_the_package_and_a_tag_from_the_run(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "user").mkdir(parents=True)
    (package / "package.json").write_text(MANIFEST.model_dump_json())
    (package / "user" / "rows.py").write_text("x = 1\n")
    world = make_world(tmp_path, build="kaniko", image_registry="registry:5000/ml/", serving_image="base@sha256:1")
    world.registry = world.tracking = Runs(package)  # type: ignore[assignment]  # both answer from one folder

    first, again = build(ASKED, world=world), build(ASKED, world=world)

    assert first == again
    assert (first.image, first.destination) == ("", "registry:5000/ml/adult-income:r3")
    with tarfile.open(fileobj=io.BytesIO(Storage(world.settings).read(first.context))) as tar:
        assert tar.getnames() == ["Dockerfile", "model/package.json", "model/user/rows.py"]
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile is not None
        text = dockerfile.read().decode()
    assert text.startswith("FROM base@sha256:1\nCOPY model /model\n")
    assert '"--version", "3", "--run-id", "r3"' in text
