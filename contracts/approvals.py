"""A person's word on a cluster: an immutable ConfigMap, and the admission policy that vouches for who wrote it.

The command line writes it, `promote` reads it by name and enters it in the ledger; an administrator installs the policy
(`kind/approvals.yaml`, which `workflows.platform` writes from here).  Kubernetes' own objects as plain data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from contracts.admission import RBAC, in_force, looking, policy_and_binding
from contracts.base import Contract
from contracts.names import STEP_SERVICE_ACCOUNT
from contracts.stages import Promote

PREFIX = "retrain-approval-"
"""Of the names of all words: the policy tells them by it."""
POLICY = "retrain-approvals"
GROUP, RESOURCE = "retrain", "approvals"
"""What a Role lets `create` who may say yes or no.  No such object exists: the policy asks what RBAC would answer."""
APPROVERS = "retrain-approvers"


Said = Literal["approved", "rejected", "rollback"]


class Word(Contract):
    """What a person said, and on what."""

    by: str
    decision: Said
    reason: str
    model: str
    version: int
    about: str
    """The entry that it answers: the request; of a rollback the newest of what serves and of where it goes back to."""
    artifact_sha256: str = ""
    report: str = ""
    report_sha256: str = ""
    again: int = 0
    """Of a rollback: how many words before it answered the same entry, and lapsed."""


def word_name(about: str, version: int, again: int = 0) -> str:
    """Return what the word on a version is called that answers an entry: of a request there can be one."""
    said = f"{about} {version} {again}" if again else f"{about} {version}"
    return PREFIX + hashlib.sha256(said.encode()).hexdigest()[:40]


def config_map(word: Word) -> dict[str, Any]:
    """Return a word as an immutable ConfigMap."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "immutable": True,
        "metadata": {"name": word_name(word.about, word.version, word.again)},
        "data": {name: str(value) for name, value in word.model_dump(mode="json").items()},
    }  # fmt: skip


_OURS = " || ".join(
    f"(has(o.metadata.{field}) && o.metadata.{field}.startsWith('{PREFIX}'))" for field in ("name", "generateName")
)
_CREATED = "request.operation != 'CREATE' || "
_REMOVER = "system:serviceaccount:kube-system:namespace-controller"

SPEC: Mapping[str, Any] = {
    "failurePolicy": "Fail",
    "matchConstraints": {
        "resourceRules": [{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE", "DELETE"],
            "resources": ["configmaps"],
        }],
    },
    "matchConditions": [
        {"name": "is-an-approval", "expression": f"[object, oldObject].exists(o, o != null && ({_OURS}))"},
    ],
    "validations": [
        {
            "expression": (
                "request.operation == 'CREATE' || "
                f"(request.operation == 'DELETE' && request.userInfo.username == '{_REMOVER}')"
            ),
            "message": "an approval is neither changed nor removed",
        },
        {
            "expression": (
                f"{_CREATED}!request.userInfo.username"
                ".startsWith('system:serviceaccount:' + request.namespace + ':')"
            ),
            "message": "an account of this namespace's pipelines approves nothing",
        },
        {
            "expression": (
                f"{_CREATED}authorizer.group('{GROUP}').resource('{RESOURCE}').namespace(request.namespace)"
                ".check('create').allowed()"
            ),
            "message": f"no Role lets you create {RESOURCE}.{GROUP} in this namespace",
        },
        {
            "expression": (
                f"{_CREATED}(has(object.data) && 'by' in object.data"
                " && object.data['by'] == request.userInfo.username)"
            ),
            "message": "`by` must be the name that you are authenticated as",
        },
        {
            "expression": (
                f"{_CREATED}(has(object.immutable) && object.immutable && !has(object.metadata.generateName))"
            ),
            "message": "an approval is immutable, and its name is given",
        },
    ],
}  # fmt: skip
"""Of the ValidatingAdmissionPolicy."""


def policy_objects(namespace: str, name: str = POLICY) -> list[dict[str, Any]]:
    """Return what an administrator of the cluster installs: the policy, who may look at it, and who may approve."""
    own = {"namespace": namespace}
    approving = [
        {"apiGroups": [GROUP], "resources": [RESOURCE], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create"]},
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "create", "delete"]},
        {"apiGroups": [""], "resources": ["pods/log", "services/proxy"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get", "list", "create", "delete"]},
    ]
    group = {"apiGroup": RBAC, "kind": "Group", "name": APPROVERS}
    promote = {
        "kind": "ServiceAccount",
        "name": STEP_SERVICE_ACCOUNT.format(stage=Promote.name),
        "namespace": namespace,
    }
    return [
        *policy_and_binding(name, SPEC, namespace),
        *looking(name, namespace, [promote, group]),
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": APPROVERS, **own}, "rules": approving},
        {
            "apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": APPROVERS, **own},
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": APPROVERS}, "subjects": [group],
        },
    ]  # fmt: skip


def vouches(
    policy: Mapping[str, Any] | None, binding: Mapping[str, Any] | None, namespace: str, made: str = ""
) -> bool:
    """Say whether a policy and its binding, as the API server shows them, vouched for a word when it was made.

    Parameters
    ----------
    made
        Creation time of the word, as Kubernetes writes it; empty: of whatever comes now.
    """
    since = max((str(each["metadata"].get("creationTimestamp", "")) for each in (policy, binding) if each), default="")
    return in_force(policy, binding, SPEC, namespace) and (not made or since < made)
