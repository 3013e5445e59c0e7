"""Write a first pipeline file for a table that was looked at.  Pure; called by `retrain init` and `schema infer`.

What would make a run meaningless is an error in the file: types, nulls where there were none, classes that were not
there.  All else that today's data happens to keep (ranges, few values, share of missing) is a warning.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from datetime import date
from typing import Any

import yaml

from contracts.metrics import Task
from contracts.pipeline.source import CsvOptions
from contracts.pipeline.table import ColumnType
from steps.inference import Inferred, InferredColumn
from workflows.learning_choice import NUMBERS, TIMES, Learning

_CANDIDATES = """\
  candidates:                       # the best one on validation rows goes on to the gates
    - name: lightgbm
      estimator: lightgbm
      parameters: {n_estimators: 400, learning_rate: 0.05, num_leaves: 31}
      early_stopping: 30            # rounds without improvement on validation rows
    - name: hist-gradient-boosting  # scikit-learn's own; needs no further library
      estimator: hist_gradient_boosting
      parameters: {max_iter: 200, learning_rate: 0.06}
      early_stopping: 20
    - name: linear                  # a plain model that the others should beat
      estimator: linear
    # - name: mine                  # your own scikit-learn estimator, from my_model.py beside this file
    #   estimator: my_model:make_pipeline   # training.trusted_types lists its types that skops is to load, if any
"""


def pipeline_file(
    name: str, uri: str, table: Inferred, csv: CsvOptions | None, learning: Learning, sensitive: Collection[str] = ()
) -> str:
    """Return the text of the file.  `csv` is None for Parquet; cells of `sensitive` columns are not in it."""
    return "".join(
        (
            f"# Predicts {learning.column.name} ({learning.task}); written by `retrain init`, {table.rows:,} rows.\n",
            "# Keys and their meaning: `retrain schema file`, or docs/pipeline-file.md of retrain.\n",
            "apiVersion: retrain/v1\n",
            f"name: {name}\n\n",
            _source(uri, table, csv),
            "\n",
            schema_section(table, learning, sensitive),
            "\n",
            _target(learning),
            "\n",
            _features(table, learning),
            "\n",
            _split(table, learning),
            "\n",
            f"training:\n  metric: {_METRIC[learning.task]:<25} # on validation rows\n  seed: 7\n",
            _CANDIDATES,
            "\n",
            _gates(table, learning),
            "\n# schedule: {cron: [\"0 3 * * 1\"], timezone: Europe/Berlin}   # Mondays at three; compiled suspended\n",
            "# triggers: {webhook: {}}                                       # POST with a bearer token starts a run\n",
        )
    )  # fmt: skip


def schema_section(table: Inferred, learning: Learning | None = None, sensitive: Collection[str] = ()) -> str:
    """Return the section `schema` alone."""
    lines = [
        "schema:",
        "  # As found: types and nulls are errors, ranges and values only warnings.  Each rule may be written as",
        "  # {value: ..., level: error or warn, tolerate: share of rows}.  sensitive: true masks a column in reports.",
        "  columns:",
        *(
            f"    - {_flow(_column(c, table.rows, learning, c.name in sensitive))}{_note(c, table.rows)}"
            for c in table.columns
        ),
        f"  rows: {_flow({'min': {'value': max(1, table.rows // 2), 'level': 'warn'}})}",
    ]
    if dated := next((c for c in table.columns if c.type in TIMES), None):
        lines.append(
            f"  # freshness: {_flow({'column': dated.name, 'max_age': '30d'})}   # of the newest value, in a run"
        )
    return "\n".join(lines) + "\n"


def pipeline_name(text: str) -> str:
    """Turn a file's stem into a name that Kubernetes takes."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return name or "pipeline"


_METRIC = {Task.BINARY: "roc_auc", Task.MULTICLASS: "log_loss", Task.REGRESSION: "rmse"}


def _source(uri: str, table: Inferred, csv: CsvOptions | None) -> str:
    text = f"source:\n  uri: {_flow(uri)}\n"
    if csv is not None:
        options = csv.model_copy(update={"missing": table.missing_markers}).model_dump(
            mode="json", exclude_defaults=True
        )
        text += f"  csv: {_flow(options)}\n" if options else ""
    return text


def _column(column: InferredColumn, rows: int, learning: Learning | None, sensitive: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"name": column.name, "type": column.type.value}
    found |= {"sensitive": True} if sensitive else {}
    is_target = learning is not None and column.name == learning.column.name
    missing = column.nulls + column.misfits  # `type_level: warn` would make the misfits null
    if missing == 0 or is_target:
        found["nullable"] = False
    else:
        found["max_missing"] = {"value": _twice(missing / rows), "level": "warn"}
    if is_target and learning is not None and learning.task is not Task.REGRESSION:
        return found | ({"allowed": list(column.values)} if column.values else {})
    if any(isinstance(v, float) and math.isinf(v) for v in (column.minimum, column.maximum)):
        found["infinity"] = True
    if sensitive:
        return found  # bounds and values are cells
    if column.type in NUMBERS and not column.identifier:
        bounds = {"min": column.minimum, "max": column.maximum}
        found |= {key: _warn(v) for key, v in bounds.items() if v is not None and math.isfinite(float(v))}
    elif column.type in TIMES and column.minimum is not None:
        found["min"] = _warn(column.minimum)  # no max: time goes on
    elif column.type is ColumnType.STRING and column.values:
        found["allowed"] = _warn(list(column.values))
    return found


def _note(column: InferredColumn, rows: int) -> str:
    if column.nulls == rows:
        return "   # has no value at all"
    if column.misfits:
        return f"   # not {column.type}: {column.misfits:,} cells, which a run names; type_level: warn makes them null"
    if column.identifier:
        return "   # no value stands twice"
    return ""


def _target(learning: Learning) -> str:
    lines = ["target:", f"  column: {_flow(learning.column.name)}", f"  task: {learning.task}"]
    if learning.task is Task.BINARY:
        share = f"; {min(learning.shares):.1%} of rows are of the rarer class" if learning.shares else ""
        lines.append(f"  positive: {_flow(learning.positive):<26} # the class that counts as positive{share}")
        lines.append("  threshold: {rule: metric, metric: f1}  # where to say positive: half (0.5), metric or cost")
    return "\n".join(lines) + "\n"


def _features(table: Inferred, learning: Learning) -> str:
    lines = ["features:", "  numeric_missing: median            # or mean, or none: the estimator sees the gap"]
    if any(c.type in TIMES for c in table.columns):
        lines.append("  dates: [year, month, weekday, epoch_days]   # what a date column becomes")
    dropped = [c for c in table.columns if c.name != learning.column.name and (c.identifier or c.nulls == table.rows)]
    if dropped:
        lines.append("  columns:")
        why = {True: "an identifier says nothing about the next row", False: "it has no value"}
        lines += [f"    - {_flow({'column': c.name, 'drop': True})}   # {why[c.identifier]}" for c in dropped]
    return "\n".join(lines) + "\n"


def _split(table: Inferred, learning: Learning) -> str:
    method = "random" if learning.task is Task.REGRESSION else "stratified"
    lines = [
        "# A row's side depends on seed and content alone, so it stays where it is in later data.",
        f"split: {{method: {method}, validation: 0.2, test: 0.2, seed: 7}}",
    ]
    dated = next((c for c in table.columns if c.type in TIMES and c.minimum != c.maximum), None)
    if dated:
        validation, test = _late_parts(dated)
        lines += [
            "# When tomorrow's rows are to be predicted, split by time instead; move the bounds forward only:",
            "# split:",
            "#   method: time",
            f"#   time: {{column: {_flow(dated.name)}, validation: {validation}, test: {test}}}",
        ]
    lines.append("# When rows belong together (a customer's, a patient's): {method: group, group: COLUMN}")
    return "\n".join(lines) + "\n"


def _late_parts(column: InferredColumn) -> tuple[date, date]:
    """Return where the last two fifths of a column's time begin, and where the last one does."""
    first, last = (date.fromisoformat(str(end)[:10]) for end in (column.minimum, column.maximum))
    return first + (last - first) * 3 / 5, first + (last - first) * 4 / 5


def _gates(table: Inferred, learning: Learning) -> str:
    metric, bound, why = _baseline(learning)
    slices = next(
        (c for c in table.columns if c.values and c.type is ColumnType.STRING and c is not learning.column), None
    )
    best, margin = ("r2", 0.01) if learning.task is Task.REGRESSION else (_METRIC[learning.task], 0.005)
    rule = f"rule: superior, non_inferior_after: 30d, margin: {margin}"
    compared = f"metric: {best}, {rule}, min_rows: {_shared_rows(table)}"
    lines = [
        "gates:",
        "  default:                          # environments: {production: ...} replaces it there",
        "    validation:                     # on test rows, before a version is registered",
        "      thresholds:",
        f"        # {why}",
        "        # The whole 95 % interval must be inside.  Raise the bound once you know what good is.",
        f"        - {{metric: {metric}, {bound}}}",
    ]
    if slices is not None:
        each = f"{{column: {_flow(slices.name)}, metric: {metric}, {bound}, min_rows: 100}}"
        lines.append(f"      # slices: [{each}]   # each group must pass")
    lines += [
        "    promotion:                      # stricter, before a version serves",
        "      # The champion stays unless the new one is better on rows that neither was fitted to; a tie keeps it.",
        f"      comparison: {{{compared}}}",
        "      # thresholds: [...]           # as above",
        *(() if learning.task is Task.REGRESSION else ("      # max_calibration_error: 0.1",)),
        "      # max_size_mib: 50",
        "      # latency: {max_ms: 50, max_ratio: 3}   # one row; ratio to the champion's",
    ]
    return "\n".join(lines) + "\n"


def _baseline(learning: Learning) -> tuple[str, str, str]:
    """Return metric, bound and reason: a tenth of the way (binary: a fifth) from what guessing reaches to perfect."""
    if learning.task is Task.BINARY:
        return "roc_auc", "min: 0.6", "Guessing without looking at the row reaches 0.5, a perfect order 1."
    if learning.task is Task.REGRESSION:
        return "r2", "min: 0.1", "Always predicting the mean reaches 0, perfect predictions 1."
    classes = len(learning.shares) or learning.column.distinct
    chance = 1 / classes
    why = f"Always saying one of {classes} classes reaches {chance:.3g}, perfect predictions 1."
    return "balanced_accuracy", f"min: {chance + 0.1 * (1 - chance):.3g}", why


def _shared_rows(table: Inferred) -> int:
    return max(20, min(200, table.rows // 10))


def _warn(value: Any) -> dict[str, Any]:
    return {"value": value, "level": "warn"}


def _twice(share: float) -> float:
    return min(0.99, float(f"{2 * share:.2g}"))


def _flow(value: Any) -> str:
    """Write a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
