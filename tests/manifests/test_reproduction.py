"""The Workflow that builds a version again: its image is the version's, its rights are to read."""

from __future__ import annotations

from contracts.access import ACCESS, REPRODUCE
from contracts.pipeline.operation import Resources
from contracts.stages import Need
from workflows.reproduction import reproduction

IMAGE = "registry/steps@sha256:" + "1" * 64


def test_it_runs_on_the_recorded_image_as_the_duty_that_writes_nothing() -> None:
    made = reproduction("retrain-reproduce-x", IMAGE, "churn@3", Resources(memory_mib=2048, cpu_millicores=500))

    [template] = made["spec"]["templates"]
    assert made["spec"]["entrypoint"] == template["name"] == REPRODUCE
    assert "onExit" not in made["spec"]
    assert "retrain/pipeline" not in made["metadata"].get("labels", {}), "no run of the pipeline: `status` lists those"
    assert template["container"]["image"] == IMAGE
    assert template["container"]["args"] == ["churn@3"]
    assert template["serviceAccountName"] == "retrain-reproduce"
    assert template["automountServiceAccountToken"] is False
    assert template["container"]["securityContext"]["readOnlyRootFilesystem"] is True
    assert template["metadata"]["labels"] == {"retrain/stage": REPRODUCE}
    assert '"limits": {"memory": "4096Mi"}' in template["podSpecPatch"]
    [answer] = template["outputs"]["parameters"]
    assert answer["valueFrom"]["path"].endswith("/answer")
    rights = ACCESS[REPRODUCE]
    assert (rights.write, rights.serving) == ((), ())
    assert rights.needs == {Need.STORE, Need.TRACKING, Need.LEDGER}
    assert rights.ledger is not None
    assert rights.ledger.value.endswith("reader")
