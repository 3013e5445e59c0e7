"""A version built again on a cluster: what the Workflow is made of is asked of a real store, MLflow and ledger."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from contracts.errors import ConfigError
from contracts.names import tag
from contracts.outcomes import Note
from steps.register import register
from steps.reproduce import Answer, Reproduction
from steps.retention.runs import Runs
from tests.cli.test_cluster_approvals import Place, here
from tests.steps.kept_things import Made, enter
from tests.steps.registered import ADULT, finished_run, make_world, to_register
from workflows.cluster import archive, job
from workflows.cluster import errand as errands
from workflows.duties import ANSWER

IMAGE = "registry/steps@sha256:" + "1" * 64
SAID = Reproduction(
    model="adult-income", version=1, run_id="r", answer=Answer.IDENTICAL, rows=9, largest_difference=0.0, tolerance=0.0,
    commit="", environment="today's",
)  # fmt: skip
OWN = {"memory_mib": 3000, "cpu_millicores": 900}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A platform with one version, whose material was removed once; its Workflows succeed."""
    monkeypatch.setattr(errands, "errand", here)
    ended = SimpleNamespace(nodes={"n": SimpleNamespace(outputs={ANSWER: SAID.model_dump_json()})})
    monkeypatch.setattr(job, "succeeded", lambda *_: ended)
    world = make_world(tmp_path)
    run = finished_run(world, {tag("steps_image"): IMAGE})
    version = register(to_register(world, run), world=world).version
    enter(world, Made(version, run, "", "", ""), Note.REMOVED, archive="s3://archive")
    place: Any = Place(tmp_path)
    place.settings = {"RETRAIN_TRAIN_MEMORY": "2048", "RETRAIN_TRAIN_CPU": "500"}
    place.file = f"{next(iter(Runs(world.settings).places(run)))}/pipeline.yaml"
    place.put = lambda text: world.storage.write(place.file, text.encode())
    return place


def asked_for(place: Any) -> dict[str, Any]:
    """Build it again; return the resources that the Workflow's container was given."""
    assert archive.reproduce(place, "1", lambda _: None) == SAID
    [made] = [made for (kind, _), made in place.objects.items() if kind == "Workflow"]
    [template] = made["spec"]["templates"]
    assert (template["container"]["image"], template["container"]["args"]) == (IMAGE, ["adult-income@1"])
    [container] = json.loads(template["podSpecPatch"])["containers"]
    return dict(container["resources"]["requests"])


@pytest.mark.parametrize(
    ("resources", "requests"),
    [
        ({"train": OWN}, {"cpu": "900m", "memory": "3000Mi"}),
        ({"ingest": OWN}, {"cpu": "500m", "memory": "2048Mi"}),
    ],
)
def test_a_version_whose_copies_were_brought_back_is_built_with_what_its_training_had(
    place: Any, resources: dict[str, Any], requests: dict[str, str]
) -> None:
    place.put(yaml.safe_dump(yaml.safe_load(ADULT.read_text()) | {"resources": resources}))

    assert asked_for(place) == requests


def test_a_pipeline_file_that_only_the_versions_image_reads_leaves_the_size_to_the_environment(place: Any) -> None:
    place.put("apiVersion: retrain/v0\n")

    assert asked_for(place) == {"cpu": "500m", "memory": "2048Mi"}


def test_a_version_whose_copies_were_not_brought_back_says_who_removed_it(place: Any) -> None:
    with pytest.raises(ConfigError, match=r"was removed on .* by ann") as refused:
        archive.reproduce(place, "1", lambda _: None)

    assert "copy it back from s3://archive" in refused.value.remedy
    assert place.objects == {}, "no Workflow was made"
