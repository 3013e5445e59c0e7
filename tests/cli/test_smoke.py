"""`make smoke` where there is no cluster: one line, and the exit code of its class."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_without_a_kubeconfig_it_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workflows.cluster.smoke", "adult.yaml"],
        env={**os.environ, "KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 78
    assert "no kubeconfig" in done.stderr
    assert "set KUBECONFIG" in done.stderr
    assert done.stdout == ""
