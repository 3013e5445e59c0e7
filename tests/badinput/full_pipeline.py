"""Pipeline files that name every field there is, in variants where fields exclude each other.  Right as they stand."""

from __future__ import annotations

from typing import Any

BOOTSTRAP = {"confidence": 0.9, "resamples": 200, "seed": 1, "decide": "point"}
GATES: dict[str, Any] = {
    "validation": {
        "thresholds": [
            {"metric": "roc_auc", "min": 0.6},
            {"composite": {"f1": 0.5, "log_loss": -0.5}, "max": 1.5},
            {"function": "my_gates:saved", "columns": ["city"], "min": 1},
        ],
        "slices": [
            {"column": "city", "metric": "f1", "min": 0.5, "min_rows": 50, "values": ["north", "south"]},
            {"column": "member", "metric": "log_loss", "max": 0.7},
        ],
        "bootstrap": BOOTSTRAP,
    },
    "promotion": {
        "thresholds": [{"metric": "roc_auc", "min": 0.7}],
        "comparison": {
            "metric": "roc_auc", "rule": "non_inferior", "margin": 0.01, "non_inferior_after": "30d", "min_rows": 100,
            "bootstrap": dict(BOOTSTRAP),
        },
        "max_calibration_error": 0.1,
        "max_size_mib": 20,
        "latency": {"max_ms": 50, "max_ratio": 3, "calls": 100},
    },
    "decision": "approval",
    "approval_expires": "3d",
}  # fmt: skip
FULL: dict[str, Any] = {
    "apiVersion": "retrain/v1",
    "name": "shop",
    "description": "Who buys?",
    "source": {
        "uri": "shop.csv",
        "format": "csv",
        "csv": {"delimiter": ";", "quote": "'", "encoding": "latin-1", "missing": ["?"]},
    },
    "schema": {
        "columns": [
            {"name": "id", "type": "integer", "unique": True, "nullable": False},
            {
                "name": "age", "type": "integer", "type_level": "warn", "type_tolerate": 0.01,
                "min": 0, "max": {"value": 120, "level": "warn", "tolerate": 0.1}, "max_missing": 0.2,
            },
            {"name": "pay", "type": "number", "infinity": True, "sensitive": True},
            {"name": "city", "type": "string", "allowed": ["north", "south"], "pattern": "[a-z]+"},
            {"name": "member", "type": "boolean"},
            {"name": "since", "type": "date"},
            {"name": "weight", "type": "number"},
            {"name": "bought", "type": "string"},
        ],
        "rows": {"min": 10, "max": 1000},
        "freshness": {"column": "since", "max_age": "30d", "level": "warn"},
        "unique": [["id", "city"]],
        "extra_columns": "drop",
    },
    "target": {
        "column": "bought", "task": "binary", "positive": "yes",
        "threshold": {"rule": "cost", "metric": "f1", "cost": {"false_positive": 1, "false_negative": 5}},
    },
    "features": {
        "passthrough": False, "numeric_missing": "mean", "indicator": False, "max_categories": 50,
        "min_category_rows": 3, "drop_constant": False, "drop_identifiers": False, "dates": ["year", "month"],
        "columns": [
            {"column": "id", "drop": True},
            {"column": "age", "missing": "constant", "fill": 40, "indicator": True},
            {"column": "member", "categorical": True, "max_categories": 10},
        ],
    },
    "split": {"method": "group", "validation": 0.2, "test": 0.2, "seed": 3, "key": ["id"], "group": "city"},
    "training": {
        "metric": "roc_auc", "seed": 1, "sample_weight": "weight", "class_weight": "balanced",
        "trusted_types": ["my.Type"], "reproduce_tolerance": 0.001, "parallel": 2,
        "candidates": [
            {
                "name": "boosted", "estimator": "lightgbm", "parameters": {"num_leaves": 7}, "early_stopping": 5,
                "search": {
                    "trials": 5, "seed": 2, "max_seconds": 60,
                    "space": {
                        "learning_rate": {"low": 0.01, "high": 0.2, "log": True, "integer": False},
                        "boosting": {"choices": ["gbdt", "dart"]},
                    },
                },
            },
            {"name": "mine", "estimator": "my_model:make"},
        ],
    },
    "gates": {"default": GATES, "environments": {"live": {"validation": {"thresholds": [{"metric": "f1", "min": 0}]}}}},
    "code": ["more.py"],
    "release": {
        "strategy": "canary", "ready_timeout": "30s", "drain_timeout": "5s", "contract": 2,
        "shadow": {"hold": "5m", "percent": 50, "max_label_changes": 0.2, "min_rows": 50},
        "steps": [{"weight": 5, "hold": "1m"}, {"weight": 40, "hold": "2m"}],
        "analysis": {
            "interval": "10s", "window": "30s", "min_requests": 50, "patience": "5m", "failures": 1, "hold": "3m",
            "latency_floor_ms": 5,
            "max_error_rate": 0.02, "max_latency_ratio": 2, "max_score_distance": 0.3, "max_label_distance": 0.1,
        },
    },
    "records": {"share": 0.1, "inputs": True},
    "schedule": {
        "cron": ["0 3 * * 1"], "timezone": "Europe/Berlin", "starting_deadline": "1h", "keep_successful": 2,
        "keep_failed": 2,
    },
    "triggers": {
        "webhook": {
            "port": 12001, "token_secret": "hook",
            "objects": {"bucket": "data", "prefix": "in/", "suffix": ".csv"},
        },
    },
    "notifications": {"on": ["promoted", "failed"]},
    "resources": {"train": {"memory_mib": 512, "cpu_millicores": 500}},
}  # fmt: skip
BY_TIME = FULL | {
    "source": {"uri": "sql:", "query": "SELECT * FROM t ORDER BY id", "dsn_secret": "DSN"},
    "split": {"method": "time", "time": {"column": "since", "validation": "2026-01-01", "test": "2026-02-01"}},
}
VARIANTS = {"full": FULL, "by time": BY_TIME}
