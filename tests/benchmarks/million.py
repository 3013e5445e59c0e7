"""The table of the benchmarks, and the pipeline that reads it: rows x 30 columns of CSV, made once in a folder.

``python -m tests.benchmarks.million ROWS FOLDER`` writes ``table.csv`` and ``table.yaml``.
"""

import sys
from pathlib import Path

from tests.datasets.make import million

COLUMNS = 30
UNIQUE = 1_000_000
TREES, LEAVES, RATE = 100, 31, 0.1
PIPELINE = """\
apiVersion: retrain/v1
name: million
source: {{uri: table.csv}}
schema:
  columns:
{columns}
target: {{column: bought, task: binary, positive: "yes"}}
split: {{method: stratified, validation: 0.2, test: 0.2, seed: 7}}
training:
  metric: roc_auc
  candidates:
    - name: lightgbm
      estimator: lightgbm
      parameters: {{n_estimators: {trees}, num_leaves: {leaves}, learning_rate: {rate}}}
gates:
  default:
    validation: {{thresholds: [{{metric: roc_auc, min: 0.6}}]}}
"""


def make(folder: Path, rows: int) -> Path:
    """Write table and pipeline unless they are there; return the pipeline's path.  Beyond a million, rows repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    pipeline, table = folder / "table.yaml", folder / "table.csv"
    if not table.exists():
        frame = million(min(rows, UNIQUE), COLUMNS)
        header, body = frame.to_csv(index=False).encode().split(b"\n", 1)
        part = table.with_suffix(".part")
        with part.open("wb") as file:
            file.write(header + b"\n")
            for _ in range(-(-rows // UNIQUE)):
                file.write(body)
        part.replace(table)
    kinds = {"float64": "number", "int64": "integer"}
    types = million(1000, COLUMNS).dtypes.items()
    columns = [f"    - {{name: {name}, type: {kinds.get(str(kind), 'string')}}}" for name, kind in types]
    text = PIPELINE.format(columns="\n".join(columns), trees=TREES, leaves=LEAVES, rate=RATE)
    pipeline.write_text(text, encoding="utf-8")
    return pipeline


if __name__ == "__main__":
    print(make(Path(sys.argv[2]), int(sys.argv[1])))
