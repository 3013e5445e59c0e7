"""Score rows with a packaged model: ``python -m serving.score --package DIR --rows IN.parquet --out OUT.parquet``.

Called by `steps.own_environment` under another Python environment than its own, so it needs `contracts`, `serving`
and the model's libraries only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.errors import StageError
from serving.model import PackagedModel, Predictions

LABEL, SCORE = "label", "score_"


def main(argv: list[str] | None = None) -> int:
    """Score a file and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m serving.score", description=__doc__)
    parser.add_argument("--package", type=Path, required=True, help="folder of the packaged model")
    parser.add_argument("--rows", type=Path, required=True, help="Parquet file of raw rows")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    options = parser.parse_args(argv)
    try:
        predictions = PackagedModel.load(options.package).predict(pq.read_table(options.rows))
    except StageError as error:
        print(error.message, file=sys.stderr)
        return error.row.exit_code
    pq.write_table(to_table(predictions), options.out)
    return 0


def to_table(predictions: Predictions) -> pa.Table:
    """Return predictions as columns: `label`, and `score_<i>` for the i-th class."""
    columns = {LABEL: pa.array(predictions.labels)}
    if predictions.scores is not None:
        columns |= {f"{SCORE}{i}": pa.array(column) for i, column in enumerate(predictions.scores.T)}
    return pa.table(columns)


def from_table(table: pa.Table) -> Predictions:
    """Read what `to_table` made."""
    scores = [table.column(name).to_numpy() for name in table.column_names if name.startswith(SCORE)]
    return Predictions(table.column(LABEL).to_numpy(), np.column_stack(scores) if scores else None)


if __name__ == "__main__":
    sys.exit(main())
