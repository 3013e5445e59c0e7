"""Write what the Helm chart takes from the contracts: ``python -m workflows.platform``.

The chart renders service accounts, roles, network policies, users and secrets from ``kind/platform/contracts.yaml``, so
that names and rights stand in contracts/ alone.  A test compares the committed file with what is written now.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from contracts import approvals, confinement, names
from contracts.access import (
    ACCESS,
    AUDIT,
    EXECUTOR_RULES,
    LEDGER_OWNER,
    RETENTION,
    SENSOR_RULES,
    SERVING,
    SHADOW,
    LedgerRole,
    Rule,
)
from contracts.settings import sizes, variable
from workflows import retention

FILE = Path(__file__).resolve().parent.parent / "kind" / "platform" / "contracts.yaml"
APPROVALS, CONFINEMENT = (FILE.parent.parent / name for name in ("approvals.yaml", "deploy-policy.yaml"))
_APPROVALS_NOTE = """\
# What makes approvals on a cluster trustworthy: its administrator runs `kubectl apply -f kind/approvals.yaml`.
# Adapt the group and the namespace; a further namespace keeps its objects beside this one's:
# `sed s/mlops/others/g kind/approvals.yaml | kubectl apply -f -`.  Written by `python -m workflows.platform` from
# contracts/approvals.py; policy and binding must stay as they are, else approvals are entered as unauthenticated.
"""
_CONFINEMENT_NOTE = """\
# What keeps `deploy` from every Secret and account but serving's: the cluster's administrator runs
# `kubectl apply -f kind/deploy-policy.yaml`.  Adapt the namespace, that of serving (values: namespaces); a further one:
# `sed s/mlops/others/g kind/deploy-policy.yaml | kubectl apply -f -`.  Written by `python -m workflows.platform` from
# contracts/confinement.py.  Whoever adds to what serves (a volume, a label of the pods) adds it to the policy too.
"""
_NOTE = "# Written by `python -m workflows.platform` from contracts/; do not edit.\n"


def chart_contracts() -> str:
    """Return the file's text."""
    content = {
        "names": {
            "settings": names.SETTINGS_CONFIGMAP,
            "stageAccount": names.STEP_SERVICE_ACCOUNT.format(stage="%s"),
            "stageSecret": names.STAGE_SECRET.format(stage="%s"),
            "stageLabel": names.LABEL_STAGE,
            "servers": [SERVING, SHADOW],
            "executor": names.EXECUTOR_SERVICE_ACCOUNT,
            "sensor": names.SENSOR_SERVICE_ACCOUNT,
            "webhookSecret": names.WEBHOOK_SECRET,
            "audit": AUDIT,
            "retention": RETENTION,
        },
        "ledger": {"owner": LEDGER_OWNER, "reader": LedgerRole.READER.value, "writer": LedgerRole.WRITER.value},
        "rules": {"executor": policy_rules(EXECUTOR_RULES), "sensor": policy_rules(SENSOR_RULES)},
        "sizes": sizes(),
        "stages": {
            name: {
                "needs": sorted(need.value for need in access.needs),
                "secrets": {field: variable(field) for field in access.secrets},
                "s3": {what: list(getattr(access, what)) for what in ("read", "write", "append", "remove")},
                "mlflow": [{"resource": resource, "permission": permission} for resource, permission in access.mlflow],
                "ledger": access.ledger.value if access.ledger else "",
                "signs": access.signs,
                "rules": {
                    "serving": policy_rules(access.serving),
                    "gradual": policy_rules(access.gradual),
                    "workflows": policy_rules(access.workflows),
                },
            }
            for name, access in ACCESS.items()
        },
    }
    return _NOTE + yaml.safe_dump(content, sort_keys=False, width=120)


def policy_rules(rules: tuple[Rule, ...]) -> list[dict[str, Any]]:
    """Return rules as Kubernetes writes them."""
    return [
        {"apiGroups" if key == "groups" else key: list(value) for key, value in asdict(rule).items()} for rule in rules
    ]


def approvals_policy() -> str:
    """Return the text of what an administrator of the cluster installs for approvals."""
    return _APPROVALS_NOTE + yaml.safe_dump_all(approvals.policy_objects("mlops"), sort_keys=False, width=120)


def deploy_policy() -> str:
    """Return the text of what an administrator of the cluster installs to keep `deploy` to serving."""
    return _CONFINEMENT_NOTE + yaml.safe_dump_all(confinement.policy_objects("mlops"), sort_keys=False, width=120)


if __name__ == "__main__":
    FILE.write_text(chart_contracts(), encoding="utf-8")
    APPROVALS.write_text(approvals_policy(), encoding="utf-8")
    CONFINEMENT.write_text(deploy_policy(), encoding="utf-8")
    retention.FILE.write_text(retention.cron_workflow_file(), encoding="utf-8")
