"""A small pipeline with a secret in every place for one and marked cells in sensitive columns, and the search for them.

The model learns from a sensitive column, rows are keyed by another, a rule that warns and a slice meet a third.
"""

from __future__ import annotations

import base64
import io
import random
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.badinput.refusals import CELL
from tests.loopback import Handler, serving

PAY = "48150815"
"""A cell of a sensitive column of numbers, far above the others."""
SECRETS = {
    "SOURCE_WORD": "swordfish-password",
    "SOURCE_TOKEN": "swordfish-signature",
    "RETRAIN_AWS_ACCESS_KEY_ID": "swordfish-access-key",
    "RETRAIN_AWS_SECRET_ACCESS_KEY": "swordfish-secret-key",
    "RETRAIN_MLFLOW_USERNAME": "ann",  # MLflow itself notes who logged a run
    "RETRAIN_MLFLOW_PASSWORD": "swordfish-mlflow-word",
}
NOTIFIED = "swordfish-notify"
SECRET = "swordfish-"
"""Every secret begins with it."""

PIPELINE = """
apiVersion: retrain/v1
name: clinic
source: {uri: "http://ann:{{secret:SOURCE_WORD}}@127.0.0.1:PORT/rows.csv?X-Amz-Signature={{secret:SOURCE_TOKEN}}"}
schema:
  columns:
    - {name: patient, type: string, sensitive: true, unique: true}
    - {name: age, type: integer, nullable: false}
    - {name: pay, type: integer, sensitive: true, max: {value: 9000, level: warn}}
    - {name: diagnosis, type: string, sensitive: true, pattern: {value: "[a-z]+-[0-9]+-[ab]", level: warn}}
    - {name: returned, type: string, nullable: false}
target: {column: returned, task: binary, positive: "yes"}
split: {method: stratified, validation: 0.2, test: 0.2, key: [patient]}
training:
  metric: roc_auc
  candidates:
    - {name: small, estimator: lightgbm, parameters: {num_leaves: 4, n_estimators: 10}}
gates:
  default:
    validation:
      thresholds: [{metric: roc_auc, min: 0.6}]
      slices: [{column: diagnosis, metric: accuracy, min: 0, min_rows: 10}]
      bootstrap: {resamples: 100}
release: {drain_timeout: 2s}
"""
OWN = """
features: {passthrough: true}
training:
  metric: roc_auc
  candidates: [{name: own, estimator: "own_model:make"}]
"""
MODULE = """
from sklearn.linear_model import LogisticRegression


def make():
    return LogisticRegression()
"""


def rows(*, pay: str = PAY) -> bytes:
    """Write a table whose sensitive texts begin with `CELL`; its last row breaks the two rules that warn."""
    draw = random.Random(1)
    lines = ["patient,age,pay,diagnosis,returned"]
    for number in range(300):
        age, kind = draw.randint(18, 85), draw.choice("ab")
        returned = "yes" if age + 20 * (kind == "a") + draw.gauss(0, 12) > 60 else "no"
        lines.append(f"{CELL}-{number},{age},{draw.randint(1000, 9000)},{CELL}-{kind},{returned}")
    return "\n".join([*lines, f"{CELL}-last,50,{pay},{CELL}-other,yes\n"]).encode()


@contextmanager
def clinic() -> Iterator[int]:
    """Serve the rows to who knows the words, and take notifications; yield the port."""
    word = base64.b64encode(f"ann:{SECRETS['SOURCE_WORD']}".encode()).decode()

    class Clinic(Handler):
        def do_GET(self) -> None:
            known = self.headers["Authorization"] == f"Basic {word}" and SECRETS["SOURCE_TOKEN"] in self.path
            body = rows() if known else b"no"
            self.send_response(200 if known else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if NOTIFIED in self.path else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Clinic) as port:
        yield port


def secrets(port: int) -> dict[str, str]:
    """Return all variables with a secret."""
    return SECRETS | {"RETRAIN_NOTIFY_URLS": f"json://ann:{NOTIFIED}@127.0.0.1:{port}/{NOTIFIED}?+X-Key={NOTIFIED}"}


def lay_out(folder: Path, port: int) -> None:
    """Write the pipeline file, one whose own estimator chokes on the cells, and a table that breaks the types."""
    text = PIPELINE.replace("PORT", str(port))
    (folder / "clinic.yaml").write_text(text)
    head, _, rest = text.partition("training:")
    (folder / "own.yaml").write_text(head + OWN.strip() + "\ngates:" + rest.partition("gates:")[2])
    (folder / "own_model.py").write_text(MODULE)
    (folder / "broken.csv").write_bytes(rows(pay=f"{CELL}-pay"))


@dataclass(frozen=True)
class Leak:
    """Where something stands that should not."""

    where: str
    around: str

    def __str__(self) -> str:
        return f"{self.where}: ...{self.around}..."


def leaks(folder: Path, *, excepted: tuple[str, ...]) -> list[Leak]:
    """Search every file under a folder, zip archives unpacked, for secrets and cells; `excepted` are patterns."""
    found: list[Leak] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        where = path.relative_to(folder)
        if not any(where.match(pattern) for pattern in excepted):
            found += [leak for data in contents(path) for leak in leaks_in(str(where), data)]
    return found


def contents(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, and those of an archive's members."""
    data = path.read_bytes()
    yield data
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def leaks_in(where: str, data: bytes | str) -> Iterator[Leak]:
    """Yield the first place of each planted value."""
    text = data if isinstance(data, str) else data.decode("latin-1")
    for value in (SECRET, CELL, PAY):
        # what is encoded hides from a reader's grep, not from a reader
        for form in (value, base64.b64encode(value.encode())[:-4].decode()):
            at = text.find(form)
            if at >= 0:
                yield Leak(where, text[max(0, at - 80) : at + 60])
