"""Five stages, ingest to evaluate, as the local runner runs them from the compiled manifest.

Preflight is left out: it looks at accounts, services and the deployment, for which the baseline has no counterpart.

``python -m tests.benchmarks.five_stages PIPELINE.yaml HOME [--warm]`` prints the test scores, hashes and seconds.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from contracts.pipeline import load_pipeline
from workflows.cli.run import Desk
from workflows.cli.warm import warm_parent
from workflows.local import pods, runner

FIRST, LAST = "ingest", "evaluate"
AS_OF = "2026-01-01T00:00:00Z"


def cut_off(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Take the tasks before `FIRST` and after `LAST` out of the graph, and the exit handler."""
    spec = next(m for m in manifests if m["kind"] == "WorkflowTemplate")["spec"]
    spec.pop("onExit")
    dag = next(t["dag"] for t in spec["templates"] if t["name"] == spec["entrypoint"])
    names = [task["name"] for task in dag["tasks"]]
    dag["tasks"] = dag["tasks"][names.index(FIRST) : names.index(LAST) + 1]
    first = dag["tasks"][0]
    first.pop("depends")
    for parameter in first["arguments"]["parameters"]:
        if "tasks.preflight." in parameter["value"]:
            parameter["value"] = AS_OF
    return manifests


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("home", type=Path)
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    os.environ["RETRAIN_HOME"] = str(options.home)
    desk = Desk.open(options.pipeline, load_pipeline(options.pipeline))
    with warm_parent(wanted=options.warm) as parent:
        spawn = parent.spawn if parent else pods.spawn
        run = runner.execute(
            cut_off(desk.manifests()), home=desk.home, images=desk.images(), spawn=spawn, at_once=desk.at_once()
        )
    if run.phase != "Succeeded":
        sys.exit(f"{run.phase}: {run.message}")
    report = json.loads(next(desk.home.glob("store/reports/*/validation.json")).read_bytes())
    hashes = {key: report[key] for key in ("dataset_sha256", "split_sha256")}
    seconds = {
        n.display_name: round((n.finished - n.started).total_seconds(), 2)
        for n in run.nodes.values()
        if n.type == "Pod" and n.started and n.finished
    }
    print(json.dumps({**report["metrics"], **hashes, "seconds": seconds}))


if __name__ == "__main__":
    main()
