"""Admission policies that a cluster's administrator installs, as plain data, and whether one is in force.

Called by `contracts.approvals` and `contracts.confinement`, which say what theirs refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GROUP = "admissionregistration.k8s.io"
RBAC = "rbac.authorization.k8s.io"
NAMESPACE_LABEL = "kubernetes.io/metadata.name"
_FILLED_IN: Mapping[str, Any] = {
    "matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}, "scope": "*",
}  # fmt: skip
"""What the API server adds where nothing is said: fields of what a policy, a binding or a rule matches."""


def binding_name(namespace: str, policy: str) -> str:
    """Return what binds a policy to a namespace, and who may look at it there: the cluster knows several."""
    return f"{policy}-{namespace}"


def policy_and_binding(name: str, spec: Mapping[str, Any], namespace: str) -> list[dict[str, Any]]:
    """Return a ValidatingAdmissionPolicy, and what binds it to a namespace."""
    return [
        {
            "apiVersion": f"{GROUP}/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": name},
            "spec": dict(spec),
        },
        {
            "apiVersion": f"{GROUP}/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": binding_name(namespace, name)},
            "spec": {
                "policyName": name, "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": {"matchExpressions": [
                    {"key": NAMESPACE_LABEL, "operator": "In", "values": [namespace]},
                ]}},
            },
        },
    ]  # fmt: skip


def looking(name: str, namespace: str, subjects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a ClusterRole to look at a policy and its binding, and who has it."""
    bound = binding_name(namespace, name)
    rules = [{
        "apiGroups": [GROUP], "resourceNames": [name, bound], "verbs": ["get"],
        "resources": ["validatingadmissionpolicies", "validatingadmissionpolicybindings"],
    }]  # fmt: skip
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": bound}, "rules": rules},
        {
            "apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": bound},
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": bound}, "subjects": list(subjects),
        },
    ]  # fmt: skip


def in_force(
    policy: Mapping[str, Any] | None, binding: Mapping[str, Any] | None, spec: Mapping[str, Any], namespace: str
) -> bool:
    """Say whether a policy and its binding, as the API server shows them, are as `policy_and_binding` makes them.

    Whatever else stands there narrows or loosens them, but for what the API server fills in.
    """
    if policy is None or binding is None:
        return False
    wanted = policy_and_binding(policy["metadata"]["name"], spec, namespace)
    return [_given(each["spec"]) for each in (policy, binding)] == [_given(each["spec"]) for each in wanted]


def _given(spec: Any) -> Any:
    """Return a spec without what the API server adds to any."""
    if isinstance(spec, Mapping):
        return {key: _given(value) for key, value in spec.items() if key not in _FILLED_IN or value != _FILLED_IN[key]}
    return [_given(each) for each in spec] if isinstance(spec, list) else spec
