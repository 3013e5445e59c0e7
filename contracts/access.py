"""Who may touch what: the one table that service accounts, network policies, MinIO's and MLflow's users, the ledger's
roles and the secrets of a stage are made from.

`workflows.platform` writes it beside the Helm chart, and `workflows.docs` into the docs; the templates of the stages
take their secrets from it.  Where a stage connects to is its `needs` (`contracts.stages`); this table says what it may
do there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from contracts.stages import BY_NAME, Need

KANIKO = "kaniko"
SERVING = "serving"
SUBMIT = "submit"
"""Whoever brings data and code from outside into the buckets; no stage of the graph."""
ASK = "ask"
"""Whoever asks from outside what a run came to, or where a version is from; no stage of the graph."""

LOGS = "logs"
"""Argo's executor where it keeps a pod's log; no stage of the graph."""

DATA = "retrain-data"
STORE = "retrain-store"
MODELS = "retrain-models"
BUCKETS = (DATA, STORE, MODELS)
"""Sources; datasets, splits, reports, code and build contexts; MLflow's artifacts."""


class LedgerRole(StrEnum):
    """What a database role may do with the ledger's table, which a third role owns."""

    READER = "retrain_ledger_reader"
    WRITER = "retrain_ledger_writer"


LEDGER_OWNER = "retrain_ledger_owner"


@dataclass(frozen=True)
class Rule:
    """One line of a Kubernetes Role, in the namespace of what it names."""

    groups: tuple[str, ...]
    resources: tuple[str, ...]
    verbs: tuple[str, ...]


@dataclass(frozen=True)
class Access:
    """What one stage may do."""

    needs: frozenset[Need]
    read: tuple[str, ...] = ()
    """Buckets or ``bucket/prefix``."""
    write: tuple[str, ...] = ()
    """The same; deleting is writing."""
    mlflow: tuple[tuple[str, str], ...] = ()
    """(resource type, permission) beyond MLflow's default, which is to read."""
    ledger: LedgerRole | None = None
    serving: tuple[Rule, ...] = field(default=())
    """What its token may do in the namespace of serving; only a stage with rules has a token."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret settings it receives."""
        return tuple(
            name
            for name, wanted in (
                ("aws_access_key_id", bool(self.read or self.write)),
                ("aws_secret_access_key", bool(self.read or self.write)),
                ("ledger", self.ledger is not None),
                ("mlflow_password", Need.TRACKING in self.needs),
                ("mlflow_username", Need.TRACKING in self.needs),
                ("notify_urls", Need.HOSTS in self.needs),
            )
            if wanted
        )


_REPORTS, _DATASETS, _SPLITS, _CODE, _CACHE, _BUILDS, _LOGS = (
    f"{STORE}/{folder}" for folder in ("reports", "datasets", "splits", "code", "cache", "builds", "logs")
)
# Whoever reads in MLflow may also register a new name, unless models are denied.
_NO_REGISTRY = ("registered_model", "DENY")
# `workspace` USE is MLflow's right to create what is not there yet.
_CREATE, _RUNS, _REGISTRY = ("workspace", "USE"), ("experiment", "EDIT"), ("registered_model", "MANAGE")
_READ, _APPLY = ("get", "list"), ("get", "list", "create", "patch")

RELEASE_RULES: tuple[Rule, ...] = (
    Rule(("apps",), ("deployments",), (*_APPLY, "delete")),
    Rule(("autoscaling",), ("horizontalpodautoscalers",), (*_APPLY, "delete")),
    Rule(("policy",), ("poddisruptionbudgets",), _APPLY),
    Rule(("networking.k8s.io",), ("networkpolicies",), _APPLY),
    Rule(("",), ("services", "serviceaccounts"), _APPLY),
    Rule(("apps",), ("replicasets",), _READ),
    Rule(("",), ("pods", "events"), _READ),
    Rule(("",), ("pods/log",), ("get",)),
    Rule(("coordination.k8s.io",), ("leases",), ("get", "create", "update")),
)


def _stage(name: str, **given: object) -> Access:
    return Access(needs=BY_NAME[name].needs, **given)  # type: ignore[arg-type]  # checked by the dataclass's users


ACCESS: dict[str, Access] = {
    "preflight": _stage(
        "preflight", read=(DATA, _REPORTS, _CODE), write=(_REPORTS,), mlflow=(_NO_REGISTRY,), ledger=LedgerRole.READER
    ),
    "ingest": _stage("ingest", read=(DATA, _DATASETS, _REPORTS, _CODE), write=(_DATASETS, _REPORTS)),
    "features": _stage(
        "features", read=(_DATASETS, _SPLITS, _CACHE, _REPORTS), write=(_SPLITS, _CACHE, _REPORTS)
    ),
    "train": _stage(
        "train",
        read=(_DATASETS, _SPLITS, _CODE, _CACHE, _REPORTS, MODELS),
        write=(_CACHE, _REPORTS, MODELS),
        mlflow=(_CREATE, _RUNS, _NO_REGISTRY),
    ),
    "evaluate": _stage(
        "evaluate", read=(_DATASETS, _SPLITS, _REPORTS, MODELS), write=(_REPORTS, MODELS), mlflow=(_RUNS, _NO_REGISTRY)
    ),
    "register": _stage(
        "register",
        read=(_REPORTS, MODELS), write=(_REPORTS,), mlflow=(_CREATE, _RUNS, _REGISTRY), ledger=LedgerRole.WRITER,
    ),
    "promote": _stage(
        "promote",
        read=(_DATASETS, _SPLITS, _REPORTS, MODELS),
        write=(_REPORTS, MODELS),
        mlflow=(_RUNS, _REGISTRY),
        ledger=LedgerRole.WRITER,
    ),
    "build": _stage("build", read=(_BUILDS, _REPORTS, MODELS), write=(_BUILDS, _REPORTS)),
    KANIKO: Access(needs=frozenset({Need.STORE, Need.IMAGES}), read=(_BUILDS,)),
    "deploy": _stage(
        "deploy",
        read=(_REPORTS, MODELS), write=(_REPORTS,), mlflow=(_REGISTRY,), ledger=LedgerRole.WRITER,
        serving=RELEASE_RULES,
    ),
    "notify": _stage("notify", read=(_REPORTS,), write=(_REPORTS,)),
    SUBMIT: Access(needs=frozenset({Need.STORE}), read=(DATA, _CODE), write=(DATA, _CODE)),
    ASK: Access(
        needs=frozenset({Need.STORE, Need.TRACKING, Need.LEDGER}), read=(_REPORTS, _LOGS, _DATASETS),
        ledger=LedgerRole.READER,
    ),
    LOGS: Access(needs=frozenset({Need.STORE}), write=(_LOGS,)),
    SERVING: Access(needs=frozenset({Need.STORE}), read=(MODELS,)),
}  # fmt: skip
"""Stage, `kaniko`, `submit`, `ask`, `logs` or `serving` -> what it may do."""

EXECUTOR_RULES: tuple[Rule, ...] = (Rule(("argoproj.io",), ("workflowtaskresults",), ("create", "patch")),)
SENSOR_RULES: tuple[Rule, ...] = (
    Rule(("argoproj.io",), ("workflows",), ("create",)),
    Rule(("argoproj.io",), ("workflowtemplates",), ("get",)),
)
"""In the namespace of the workflows."""
