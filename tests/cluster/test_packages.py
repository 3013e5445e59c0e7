"""A pipeline whose module imports packages that retrain does not have: built in the cluster, answers as at the desk.

The packages are wheels made here, so that neither machine nor cluster needs an index.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.test_packages import MODULE, PACKAGE, PIPELINE
from tests.cluster.conftest import Cluster
from tests.cluster.test_submit import retrain
from tests.wheels import only_from, stand_ins, wheel

NAME = "packages-test"
ROWS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("own")
    wheels = made / "wheels"
    wheels.mkdir()
    wheel(wheels, "shift_rows", "1.0", {"shift_rows.py": PACKAGE}, ["steps-of-rows", "scikit-learn"])
    wheel(wheels, "steps_of_rows", "0.3", {"steps_of_rows.py": "STEP = 40\n"})
    stand_ins(wheels, "scikit-learn")
    (made / "churn.yaml").write_text(PIPELINE.replace("name: churn\n", f"name: {NAME}\n"))
    (made / "own_model.py").write_text(MODULE)
    draw = random.Random(1)
    ages = [draw.randint(18, 80) for _ in range(2000)]
    lines = (f"{age},{'yes' if draw.random() < (age - 10) / 75 else 'no'}\n" for age in ages)
    (made / "churn.csv").write_text("age,churned\n" + "".join(lines))
    (made / "some.csv").write_text("age\n" + "".join(f"{age}\n" for age in range(18, 18 + ROWS)))
    with pytest.MonkeyPatch.context() as patch:
        only_from(wheels, patch)
        yield made


@pytest.fixture(scope="module")
def submitted(platform: Cluster, folder: Path) -> Iterator[dict[str, Any]]:
    small = [word for stage in ("train", "ingest", "evaluate") for word in ("-p", f"{stage}-cpu=50")]
    yield json.loads(retrain(platform, "submit", "churn.yaml", "-n", platform.namespace, "--json", *small, cwd=folder))
    for kind in ("horizontalpodautoscaler", "deployment"):
        platform.kubectl("delete", kind, NAME, "--ignore-not-found", "--wait=false")


def test_the_served_version_answers_as_at_the_desk(platform: Cluster, folder: Path, submitted: dict[str, Any]) -> None:
    assert submitted["outcome"] in ("promoted", "unchanged")
    try:
        desk = json.loads(retrain(platform, "run", "churn.yaml", "--json", cwd=folder))
        retrain(platform, "predict", "some.csv", "--out", "scored.csv", cwd=folder)
    finally:
        retrain(platform, "stop", cwd=folder)
    with (folder / "scored.csv").open() as file:
        expected = [float(row["probability_yes"]) for row in csv.DictReader(file)]
    asked = {"instances": [{"age": age} for age in range(18, 18 + ROWS)]}
    answer = httpx.post(f"{submitted['url']}/v1/predict", json=asked, timeout=30, trust_env=False).json()

    assert answer["model"]["version"] == submitted["version"]
    assert [p["probabilities"]["yes"] for p in answer["predictions"]] == pytest.approx(expected, abs=1e-12)
    assert desk["dataset_sha256"] == submitted["dataset_sha256"]


def test_lineage_names_the_packages_with_hashes_and_the_images(platform: Cluster, submitted: dict[str, Any]) -> None:
    words = ("lineage", f"{NAME}@{submitted['version']}", "--json", "-n", platform.namespace)
    found = json.loads(retrain(platform, *words))

    assert {p["name"]: p["version"] for p in found["code"]["packages"]} == {
        "shift-rows": "1.0", "steps-of-rows": "0.3",
    }  # fmt: skip
    assert all(len(hashed) == 71 for p in found["code"]["packages"] for hashed in p["hashes"])
    settings = platform.get("configmap", "retrain-settings")["data"]
    for image in (found["code"]["steps_image"], found["serving"]["image"]):
        assert "@sha256:" in image
        assert image not in settings.values(), "an image of its own"
    assert found["serving"]["answers"] is True, found["notes"]


def test_the_same_packages_are_not_built_twice(platform: Cluster, folder: Path, submitted: dict[str, Any]) -> None:
    def builds() -> set[str]:
        return {w["metadata"]["name"] for w in platform.get("workflows") if "packages-2" in w["metadata"]["name"]}

    before = builds()
    words = ("submit", "churn.yaml", "-n", platform.namespace, "--entrypoint", "release", "--json")
    again = json.loads(retrain(platform, *words, "--version", str(submitted["version"]), cwd=folder))

    assert builds() == before
    assert again["outcome"] == "unchanged"


def test_a_version_is_built_again_on_its_own_image(platform: Cluster, submitted: dict[str, Any]) -> None:
    words = ("reproduce", f"{NAME}@{submitted['version']}", "--json", "-n", platform.namespace)
    found = json.loads(retrain(platform, *words))

    assert found["answer"] == "identical"
    assert found["not_restored"] == []
