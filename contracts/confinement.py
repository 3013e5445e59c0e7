"""What keeps `deploy` to serving: an admission policy on everything that its account writes.

In the namespace of serving `deploy` may make Deployments and more (`contracts.access`), and whoever makes pods may give
them any Secret and account there; in a default install those of the platform and of every stage.  An administrator
installs the policy (`kind/deploy-policy.yaml`, which `workflows.platform` writes from here).  It holds for the account,
whatever its Role, and for what `steps.rollout` writes: pods by a Deployment's template alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from contracts.access import ACCESS, SERVING, SHADOW
from contracts.admission import RBAC, looking, policy_and_binding
from contracts.approvals import APPROVERS
from contracts.names import (
    EXECUTOR_SERVICE_ACCOUNT,
    LABEL_MANAGED_BY,
    LABEL_PIPELINE,
    LABEL_STAGE,
    MANAGED_BY,
    SENSOR_SERVICE_ACCOUNT,
    STAGE_SECRET,
    STEP_SERVICE_ACCOUNT,
)
from contracts.stages import Deploy

POLICY = "retrain-deploy"
_WRITES = {"create", "update", "patch", "delete"}
_ACCOUNT = STEP_SERVICE_ACCOUNT.format(stage=Deploy.name)
_SECRET = STAGE_SECRET.format(stage=SERVING)
_TAKEN = sorted({
    *(STEP_SERVICE_ACCOUNT.format(stage=each) for each in ACCESS), EXECUTOR_SERVICE_ACCOUNT, SENSOR_SERVICE_ACCOUNT,
    "default",
})  # fmt: skip
"""Accounts that are no server's.  None has a token in a pod here, but a cloud may know a pod by its account's name."""
_SERVERS = [SERVING, SHADOW]


def _of(kind: str, expression: str) -> str:
    """Return what must hold of objects of one kind, as they are written."""
    return f"object == null || request.kind.kind != '{kind}' || ({expression})"


def _pod(expression: str) -> str:
    return _of("Deployment", expression)


def _validation(expression: str, message: str) -> dict[str, str]:
    return {"expression": expression, "message": f"deploy {message}"}


def _written() -> list[dict[str, Any]]:
    """Return what the policy is asked about: each resource that `deploy` is given a right to write."""
    found: dict[tuple[str, ...], list[str]] = {}
    for rule in (*ACCESS[Deploy.name].serving, *ACCESS[Deploy.name].gradual):
        if _WRITES & set(rule.verbs):
            resources = found.setdefault(rule.groups, [])
            resources += [each for each in rule.resources if each not in resources]
    return [
        {
            "apiGroups": list(groups), "apiVersions": ["*"], "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": resources,
        }
        for groups, resources in found.items()
    ]  # fmt: skip


SPEC: Mapping[str, Any] = {
    "failurePolicy": "Fail",
    "matchConstraints": {"resourceRules": _written()},
    "matchConditions": [
        {
            "name": "is-deploy",
            "expression": f"request.userInfo.username.matches('^system:serviceaccount:[^:]+:{_ACCOUNT}$')",
        },
    ],
    "variables": [
        {"name": "labels", "expression": "object.spec.template.metadata.?labels.orValue({})"},
        {"name": "pod", "expression": "object.spec.template.spec"},
        {
            "name": "containers",
            "expression": (
                "variables.pod.containers + variables.pod.?initContainers.orValue([])"
                " + variables.pod.?ephemeralContainers.orValue([])"
            ),
        },
    ],
    "validations": [
        _validation(
            f"[object, oldObject].all(o, o == null || o.metadata.?labels[?'{LABEL_MANAGED_BY}'].orValue('')"
            f" == '{MANAGED_BY}')",
            f"makes, changes and removes only what has the label {LABEL_MANAGED_BY}={MANAGED_BY}",
        ),
        _validation(
            _pod(
                "variables.containers.all(c, !has(c.envFrom) && c.?env.orValue([]).all(e, !has(e.valueFrom)"
                f" || e.valueFrom.?secretKeyRef.?name.orValue('') == '{_SECRET}'))"
            ),
            f"gives a server's environment values, and keys of the Secret {_SECRET}, and nothing else",
        ),
        _validation(
            _pod("variables.pod.?volumes.orValue([]).all(v, has(v.emptyDir))"),
            "gives a server empty volumes only",
        ),
        _validation(
            _pod(
                "!variables.pod.?automountServiceAccountToken.orValue(true)"
                f" && !(variables.pod.?serviceAccountName.orValue('default') in {_TAKEN})"
                f" && ['', '-{SHADOW}'].exists(e, object.metadata.name == variables.pod.serviceAccountName + e)"
            ),
            "gives a server an account of its own name, without a token",
        ),
        _validation(
            _pod(
                "['hostNetwork', 'hostPID', 'hostIPC'].all(f, !variables.pod[?f].orValue(false))"
                " && variables.containers.all(c, !c.?securityContext.?allowPrivilegeEscalation.orValue(true)"
                " && c.?ports.orValue([]).all(p, !has(p.hostPort)))"
            ),
            "gives a server nothing of its node, and no privileges",
        ),
        _validation(
            _pod(
                f"variables.labels.all(k, k in ['{LABEL_PIPELINE}', '{LABEL_STAGE}'])"
                f" && variables.labels[?'{LABEL_STAGE}'].orValue('') in {_SERVERS}"
            ),
            "labels a server as such, and as nothing that another Service or network policy chooses",
        ),
        _validation(
            _of(
                "Rollout",
                "!has(object.spec.template) && object.spec.?workloadRef.?kind.orValue('') == 'Deployment'"
                " && object.spec.workloadRef.name == object.metadata.name"
                " && object.spec.strategy.all(s, object.spec.strategy[s].all(k, !k.endsWith('Metadata')))",
            ),
            "lets a Rollout make pods of its own Deployment's template, unchanged",
        ),
        _validation(
            _of(
                "AnalysisTemplate",
                "object.spec.?args.orValue([]).all(a, !has(a.valueFrom))"
                " && object.spec.metrics.all(m, m.provider.all(p, p == 'prometheus'))",
            ),
            "measures by Prometheus, and reads no Secret for it",
        ),
        _validation(
            _of(
                "NetworkPolicy",
                f"object.spec.podSelector.?matchLabels[?'{LABEL_STAGE}'].orValue('') in {_SERVERS}",
            ),
            "opens the network of servers alone",
        ),
        _validation(_of("Service", "!has(object.spec.externalIPs)"), "takes no addresses"),
        _validation(
            _of(
                "IngressRoute",
                "object.spec.routes.all(r, r.match.split(' || ').all(h, h in ['', '.svc', '.svc.cluster.local']"
                ".map(e, 'Host(`' + object.metadata.name + '.' + request.namespace + e + '`)')))",
            ),
            "leads only the hosts of its pipeline to servers",
        ),
        _validation(
            _of(
                "ServiceAccount",
                "object.metadata.?annotations.orValue({})"
                " == (oldObject == null ? {} : oldObject.metadata.?annotations.orValue({}))",
            ),
            "gives an account no annotations: a cloud may know it by them",
        ),
    ],
}  # fmt: skip
"""Of the ValidatingAdmissionPolicy.  Secrets by which images are pulled may be any: a node shows them to a registry
alone.
"""


def policy_objects(namespace: str, name: str = POLICY) -> list[dict[str, Any]]:
    """Return what an administrator installs for a namespace of serving: the policy, and who may look at it."""
    group = {"apiGroup": RBAC, "kind": "Group", "name": APPROVERS}
    return [*policy_and_binding(name, SPEC, namespace), *looking(name, namespace, [group])]
