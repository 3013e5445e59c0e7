"""Who may touch what: the one table that service accounts, network policies, MinIO's and MLflow's users, the ledger's
roles and the secrets of a stage are made from.

`workflows.platform` writes it beside the Helm chart, and `workflows.docs` into the docs; the templates of the stages
take their secrets from it.  Where a stage connects to is its `needs` (`contracts.stages`); this table says what it may
do there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from contracts.names import PREDICTIONS
from contracts.stages import (
    Build,
    Deploy,
    Evaluate,
    Features,
    Ingest,
    Need,
    Notify,
    Preflight,
    Promote,
    Register,
    Train,
)

KANIKO = "kaniko"
SERVING = "serving"
SHADOW = "shadow"
"""The label `retrain/stage` of a version that answers a copy of the requests, with what serving has: no Service that
serves, and no autoscaler, finds its pods by it.
"""
SUBMIT = "submit"
"""Whoever brings data and code from outside into the buckets; no stage of the graph."""
ASK = "ask"
"""Whoever asks from outside what a run came to, or where a version is from; no stage of the graph."""
REPRODUCE = "reproduce"
"""Whoever builds a version again from what was kept; no stage of the graph."""

RETENTION = "retention"
"""Whoever removes what the policy no longer keeps; no stage of the graph."""

LOGS = "logs"
"""Argo's executor where it keeps a pod's log; no stage of the graph."""
AUDIT = "audit"
"""Whoever signs the heads of the ledger, with a key that no stage is given; no stage of the graph."""

DATA = "retrain-data"
"""The bucket of sources."""
STORE = "retrain-store"
"""The bucket of datasets, splits, reports, code and build contexts."""
MODELS = "retrain-models"
"""The bucket of MLflow's artifacts."""
HEADS = "retrain-audit"
"""The bucket of signed heads, under object lock."""
ARCHIVE = "retrain-archive"
"""The bucket of what retention removed from the others, where the setting `retention_archive` names it."""


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
    append: tuple[str, ...] = ()
    """The same; what lies there it may not delete, nor write over for good: these buckets keep versions."""
    remove: tuple[str, ...] = ()
    """The same, where it may delete and not write; reading goes with it."""
    mlflow: tuple[tuple[str, str], ...] = ()
    """(resource type, permission) beyond MLflow's default, which is to read."""
    ledger: LedgerRole | None = None
    signs: bool = False
    """Whether it holds the key of the ledger's heads.  It lives where the platform's own pods do: who may start pods
    where the workflows run can read every Secret there."""
    signs_models: bool = False
    """Whether it holds the key that models are signed by."""
    serving: tuple[Rule, ...] = ()
    """What its token may do in the namespace of serving; only a stage with rules has a token."""
    gradual: tuple[Rule, ...] = ()
    """What it may do there besides, where canary and blue-green are wanted."""
    workflows: tuple[Rule, ...] = ()
    """What its token may do in the namespace of the workflows."""

    @property
    def token(self) -> bool:
        """Whether its pods get one."""
        return bool(self.serving or self.workflows)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secret settings it receives."""
        return tuple(
            name
            for name, wanted in (
                ("audit_key", self.signs),
                ("aws_access_key_id", bool(self.read or self.write or self.remove)),
                ("aws_secret_access_key", bool(self.read or self.write or self.remove)),
                ("ledger", self.ledger is not None),
                ("mlflow_password", Need.TRACKING in self.needs),
                ("mlflow_username", Need.TRACKING in self.needs),
                ("notify_urls", Need.HOSTS in self.needs),
                ("signing_key", self.signs_models),
            )
            if wanted
        )


_REPORTS, _DATASETS, _SPLITS, _FITS, _CODE, _CACHE, _BUILDS, _LOGS, _PREDICTIONS = (
    f"{STORE}/{folder}"
    for folder in ("reports", "datasets", "splits", "fits", "code", "cache", "builds", "logs", PREDICTIONS)
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
    Rule(("",), ("resourcequotas",), _READ),
    Rule(("coordination.k8s.io",), ("leases",), ("get", "create", "update")),
)

GRADUAL_RULES: tuple[Rule, ...] = (
    Rule(("argoproj.io",), ("rollouts", "analysistemplates"), (*_APPLY, "delete")),
    Rule(("argoproj.io",), ("analysisruns",), _READ),
    Rule(("traefik.io",), ("traefikservices", "ingressroutes"), (*_APPLY, "delete")),
    Rule(("",), ("services",), ("delete",)),
    Rule(("networking.k8s.io",), ("networkpolicies",), ("delete",)),
)
"""What the strategies canary and blue-green need besides, and the way back from them.  Nobody is given them who may not
give them on: Kubernetes' own ClusterRole `admin` knows nothing of Traefik.
"""

ACCESS: dict[str, Access] = {
    Preflight.name: Access(Preflight.needs, read=(_REPORTS,), write=(_REPORTS,)),
    Ingest.name: Access(Ingest.needs, read=(DATA, _DATASETS, _REPORTS, _CODE), write=(_DATASETS, _REPORTS)),
    Features.name: Access(
        Features.needs,
        read=(_DATASETS, _SPLITS, _CODE, _CACHE, _REPORTS),
        write=(_SPLITS, f"{_CACHE}/{Features.name}", _REPORTS),
    ),
    Train.name: Access(
        Train.needs,
        read=(_DATASETS, _SPLITS, _FITS, _CODE, _CACHE, _REPORTS, MODELS),
        write=(_FITS, f"{_CACHE}/{Train.name}", _REPORTS, MODELS),
        mlflow=(_CREATE, _RUNS, _NO_REGISTRY),
    ),
    Evaluate.name: Access(
        Evaluate.needs,
        read=(_DATASETS, _SPLITS, _CODE, _CACHE, _REPORTS, MODELS),
        write=(f"{_CACHE}/{Evaluate.name}", _REPORTS, MODELS),
        mlflow=(_RUNS, _NO_REGISTRY),
    ),
    Register.name: Access(
        Register.needs,
        read=(_REPORTS, MODELS), write=(_REPORTS, MODELS), mlflow=(_CREATE, _RUNS, _REGISTRY),
        ledger=LedgerRole.WRITER, signs_models=True,
    ),
    Promote.name: Access(
        Promote.needs,
        read=(_DATASETS, _SPLITS, _CODE, _REPORTS, MODELS),
        write=(_REPORTS, MODELS),
        mlflow=(_RUNS, _REGISTRY),
        ledger=LedgerRole.WRITER,
        workflows=(Rule(("",), ("configmaps",), ("get",)),),  # approvals, by name
    ),
    Build.name: Access(Build.needs, read=(_BUILDS, _REPORTS, MODELS), write=(_BUILDS, _REPORTS)),
    KANIKO: Access(frozenset({Need.STORE, Need.IMAGES}), read=(_BUILDS,)),
    Deploy.name: Access(
        Deploy.needs,
        read=(_REPORTS, _PREDICTIONS, MODELS), write=(_REPORTS,), mlflow=(_REGISTRY,), ledger=LedgerRole.WRITER,
        serving=RELEASE_RULES, gradual=GRADUAL_RULES,
    ),
    Notify.name: Access(
        Notify.needs, read=(_REPORTS,), write=(_REPORTS,),
        workflows=(Rule(("",), ("events",), ("list",)),),  # why a pod of the run never began
    ),
    SUBMIT: Access(
        frozenset({Need.STORE, Need.IMAGES}), read=(DATA, _CODE, _BUILDS), write=(DATA, _CODE, _BUILDS),
    ),
    ASK: Access(
        frozenset({Need.STORE, Need.TRACKING, Need.LEDGER}), read=(_REPORTS, _LOGS, _DATASETS, MODELS, HEADS),
        ledger=LedgerRole.READER,
        serving=(Rule(("apps",), ("deployments",), ("get",)), Rule(("apps",), ("replicasets",), ("list",))),
        gradual=(Rule(("argoproj.io",), ("rollouts",), ("get",)),),
    ),
    REPRODUCE: Access(
        frozenset({Need.STORE, Need.TRACKING, Need.LEDGER}), read=(_DATASETS, _SPLITS, _CODE, _REPORTS, MODELS),
        ledger=LedgerRole.READER,
    ),
    AUDIT: Access(
        frozenset({Need.STORE, Need.LEDGER}), read=(HEADS,), append=(HEADS,), ledger=LedgerRole.READER, signs=True,
    ),
    RETENTION: Access(
        frozenset({Need.STORE, Need.TRACKING, Need.LEDGER, Need.IMAGES}), read=(ARCHIVE,), append=(ARCHIVE,),
        remove=(_DATASETS, _SPLITS, _FITS, _CODE, _CACHE, _BUILDS, _REPORTS, _LOGS, _PREDICTIONS, MODELS),
        mlflow=(("experiment", "MANAGE"), ("registered_model", "EDIT")), ledger=LedgerRole.WRITER,
    ),
    LOGS: Access(frozenset({Need.STORE}), write=(_LOGS,)),
    SERVING: Access(frozenset({Need.STORE}), read=(MODELS,), write=(_PREDICTIONS,)),
}  # fmt: skip
"""Stage, or one of the duties above -> what it may do."""

EXECUTOR_RULES: tuple[Rule, ...] = (Rule(("argoproj.io",), ("workflowtaskresults",), ("create", "patch")),)
SENSOR_RULES: tuple[Rule, ...] = (
    Rule(("argoproj.io",), ("workflows",), ("create",)),
    Rule(("argoproj.io",), ("workflowtemplates",), ("get",)),
)
"""In the namespace of the workflows."""
