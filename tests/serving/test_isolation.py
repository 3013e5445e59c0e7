"""A packaged model loads and serves where `steps` and `workflows` are not installed, and never by pickle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import serving
from tests.model_packages import package

PROGRAM = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("steps", "workflows", "cloudpickle", "hera", "mlflow"):
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[2])
from fastapi.testclient import TestClient
from serving.model import PackagedModel
from serving.transform import rows_to_table
import serving.app

model = PackagedModel.load(Path(sys.argv[1]))
print(model.predict(rows_to_table(model.manifest.columns, model.example)).labels.tolist())
assert not any(name.split(".")[0] in ("steps", "workflows") for name in sys.modules)
"""


def test_a_model_loads_and_answers_where_steps_and_workflows_are_not_installed(tmp_path: Path) -> None:
    folder, site = package(tmp_path / "package"), tmp_path / "site"
    site.mkdir()
    home = Path(serving.__file__).parent.parent
    for room in ("contracts", "serving"):
        (site / room).symlink_to(home / room)
    command = [sys.executable, "-c", PROGRAM, str(folder), str(site)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "yes" in done.stdout or "no" in done.stdout


def test_no_room_mentions_pickle_but_to_say_that_there_is_none() -> None:
    home = Path(serving.__file__).parent.parent
    for room in ("contracts", "serving", "steps"):
        for path in (home / room).rglob("*.py"):
            imports = [line for line in path.read_text().splitlines() if line.strip().startswith(("import ", "from "))]
            assert not any("pickle" in line or "joblib import load" in line for line in imports), path
