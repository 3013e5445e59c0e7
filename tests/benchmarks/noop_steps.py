"""The same no-op processes as container steps of a manifest, each given the output of the one before.

``python -m tests.benchmarks.noop_steps STEPS`` runs them with the local runner, from a cold start to the end.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from workflows.local import runner

NOOP = str(Path(__file__).with_name("noop.py"))


def manifest(steps: int) -> dict[str, Any]:
    """Return a workflow of so many steps in a row."""
    template = {
        "name": "noop",
        "inputs": {"parameters": [{"name": "value"}]},
        "outputs": {"parameters": [{"name": "value", "valueFrom": {"path": "/out/value"}}]},
        "container": {
            "image": "python",
            "command": ["python"],
            "args": [NOOP, "{{inputs.parameters.value}}", "/out/value"],
            "volumeMounts": [{"name": "out", "mountPath": "/out"}],
        },
        "volumes": [{"name": "out", "emptyDir": {}}],
    }
    tasks: list[dict[str, Any]] = []
    for number in range(steps):
        before = f"step-{number - 1}"
        value = f"{{{{tasks.{before}.outputs.parameters.value}}}}" if number else "0"
        task = {
            "name": f"step-{number}",
            "template": "noop",
            "arguments": {"parameters": [{"name": "value", "value": value}]},
        }
        tasks.append(task | ({"depends": before} if number else {}))
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"name": "noop"},
        "spec": {"entrypoint": "main", "templates": [{"name": "main", "dag": {"tasks": tasks}}, template]},
    }


def main() -> None:
    """Run the workflow."""
    with tempfile.TemporaryDirectory() as home:
        run = runner.execute([manifest(int(sys.argv[1]))], home=Path(home), images={"python": [sys.executable]})
    if run.phase != "Succeeded":
        sys.exit(f"{run.phase}: {run.message}")


if __name__ == "__main__":
    main()
