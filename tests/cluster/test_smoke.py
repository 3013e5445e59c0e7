"""`make smoke` on this cluster, and where it cannot work."""

from __future__ import annotations

import sys

from tests.cluster.conftest import Cluster

SMOKE = (sys.executable, "-m", "workflows.cluster.smoke", "adult.yaml", "-n")


def test_a_version_serves_answers_and_is_explained(platform: Cluster) -> None:
    done = platform.run(*SMOKE, platform.namespace, timeout=1500)

    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["submit", "predict", "lineage"]


def test_a_namespace_without_the_platform_is_a_config_error(cluster: Cluster) -> None:
    done = cluster.run(*SMOKE, "kube-public", timeout=300)

    assert done.returncode == 78
    assert "has no platform" in done.stderr
    assert "Traceback" not in done.stderr
