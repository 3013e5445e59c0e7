"""Approvals as the API server admits them: every refusal of the policy, in a namespace and by a policy of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from contracts.admission import binding_name
from contracts.approvals import APPROVERS, Word, config_map, policy_objects, vouches, word_name
from contracts.errors import ConfigError
from contracts.outcomes import State
from contracts.references import LedgerEntry
from steps.ledger.chain import chained
from steps.rollout.cluster import Cluster as Reads
from steps.words import ClusterWords, Given
from tests.cluster.conftest import Cluster, remove_policy, until

ANN = ("--as=ann", f"--as-group={APPROVERS}", "--as-group=system:authenticated")
NEVER = "an approval is neither changed nor removed"


def request(version: int) -> LedgerEntry:
    return chained(
        None, model="churn", state=State.AWAITING, version=version, run_id="r", workflow=f"w-{os.urandom(4).hex()}",
        by="w", reason="passed", evidence={}, at=datetime(2026, 3, 1, tzinfo=UTC),
    )  # fmt: skip


def word(about: LedgerEntry, by: str = "ann", **changed: Any) -> dict[str, Any]:
    said = Word(by=by, decision="approved", reason="fine", model="churn", version=about.version, about=about.id)
    return config_map(said) | changed


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Cluster]:
    """A namespace with the policy and Roles in it, and with what a person of another team may do."""
    name = f"approvals-{os.urandom(3).hex()}"
    made = Cluster(cluster.kubeconfig, name)
    assert made.run("kubectl", "create", "namespace", name).returncode == 0
    objects = policy_objects(name, name)
    everything = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "everything"},
        "rules": [{"apiGroups": [""], "resources": ["*"], "verbs": ["*"]}],
    }  # fmt: skip
    others = {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "others"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "everything"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "installers"},
            {"kind": "ServiceAccount", "name": "retrain-promote", "namespace": name},
        ],
    }  # fmt: skip
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "retrain-promote"}}
    try:
        made.apply(*objects, everything, others, account)
        # a policy takes hold a moment after it was made
        assert until(lambda: "must be the name" in create(made, word(request(1), by="bob"), *ANN, ask=True), 60)
        yield made
    finally:
        remove_policy(made, name)
        made.run("kubectl", "delete", "namespace", name, "--wait=false")


def create(place: Cluster, wanted: dict[str, Any], *options: str, ask: bool = False) -> str:
    """Create an object as somebody; return what the API server refused with, empty when it did not."""
    command = ["kubectl", "-n", place.namespace, "create", "-f", "-", *(["--dry-run=server"] if ask else []), *options]
    done = place.run(*command, stdin=json.dumps(wanted))
    return "" if done.returncode == 0 else done.stderr


def test_who_may_approve_does_so_in_their_own_name(place: Cluster) -> None:
    about = request(2)
    assert create(place, word(about), *ANN) == ""
    kept = place.get("configmap", word_name(about.id, 2))
    assert (kept["immutable"], kept["data"]["by"]) == (True, "ann")
    assert "AlreadyExists" in create(place, word(about), *ANN)


def test_nobody_approves_in_the_name_of_another(place: Cluster) -> None:
    assert "must be the name that you are authenticated as" in create(place, word(request(3), by="bob"), *ANN)
    nameless = word(request(3))
    del nameless["data"]["by"]
    assert "must be the name that you are authenticated as" in create(place, nameless, *ANN)


def test_who_is_no_approver_does_not_though_rbac_lets_them_write_config_maps(place: Cluster) -> None:
    refused = create(place, word(request(4)), "--as=ann", "--as-group=installers")
    assert "no Role lets you create approvals.retrain in this namespace" in refused
    assert "cannot create resource" in create(place, word(request(4)), "--as=ann", "--as-group=system:authenticated")


def test_an_account_of_the_pipelines_approves_nothing_though_rbac_let_it(place: Cluster) -> None:
    account = f"system:serviceaccount:{place.namespace}:retrain-promote"
    place.apply({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "wrong"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": APPROVERS},
        "subjects": [{"kind": "ServiceAccount", "name": "retrain-promote", "namespace": place.namespace}],
    })  # fmt: skip
    refused = create(place, word(request(5), by=account), f"--as={account}")
    assert "an account of this namespace's pipelines approves nothing" in refused
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "plain"}}
    assert create(place, other, f"--as={account}") == "", "other ConfigMaps are none of its business"


def test_what_can_be_changed_is_no_approval_nor_what_names_itself(place: Cluster) -> None:
    loose = word(request(6))
    del loose["immutable"]
    assert "an approval is immutable" in create(place, loose, *ANN)
    unnamed = word(request(6), metadata={"generateName": "retrain-approval-"})
    assert "its name is given" in create(place, unnamed, *ANN)


def test_an_approval_is_neither_changed_nor_removed(place: Cluster) -> None:
    about = request(7)
    name = word_name(about.id, 7)
    assert create(place, word(about), *ANN) == ""
    for options in (
        ANN,
        (f"--as=system:serviceaccount:{place.namespace}:retrain-promote",),
        (),
    ):  # (): an administrator
        for command in (
            ["label", "configmap", name, "x=y"],
            ["patch", "configmap", name, "-p", '{"data": {"reason": "other"}}'],
            ["delete", "configmap", name],
            ["delete", "configmap", "--all"],
        ):
            done = place.run("kubectl", "-n", place.namespace, *command, *options)
            assert done.returncode != 0, command
            # who may do so by RBAC is refused by the policy; of data, Kubernetes refuses it by itself
            assert any(said in done.stderr for said in (NEVER, "cannot", "field is immutable")), done.stderr
            assert options or "patch" in command or NEVER in done.stderr
    assert place.get("configmap", name)["data"]["reason"] == "fine"


def test_promote_reads_it_by_name_and_knows_who_vouches(place: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", place.kubeconfig)
    about, later = request(8), request(9)
    assert create(place, word(about), *ANN) == ""
    words = ClusterWords(Reads(place.namespace), place.namespace)
    found = words.given(about, 8)
    assert isinstance(found, Given)
    assert (found.word.by, found.authenticated) == ("ann", True)
    assert words.given(later, 9) is None
    assert words.given(about, 9) is None, "of another version"
    unwatched = ClusterWords(Reads(place.namespace), "there-is-no-such-policy")
    assert (unwatched.given(about, 8) or found).authenticated is False


def test_a_word_under_anothers_name_is_refused(place: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", place.kubeconfig)
    about = request(10)
    stolen = word(request(11), metadata={"name": word_name(about.id, 10)})
    assert create(place, stolen, *ANN) == ""
    with pytest.raises(ConfigError, match="speaks of another version"):
        ClusterWords(Reads(place.namespace), place.namespace).given(about, 10)


def test_promote_may_read_approvals_and_see_the_policy_and_no_more(place: Cluster) -> None:
    account = f"system:serviceaccount:{place.namespace}:retrain-promote"
    for verb, expected in (("get", "yes"), ("update", "no"), ("delete", "no")):
        asked = ["kubectl", "auth", "can-i", verb, f"validatingadmissionpolicy/{place.namespace}", f"--as={account}"]
        assert place.run(*asked).stdout.strip() == expected


def test_the_policy_that_vouches_is_the_one_that_is_there(place: Cluster) -> None:
    policy = place.get("validatingadmissionpolicy", place.namespace)
    binding = place.get("validatingadmissionpolicybinding", binding_name(place.namespace, place.namespace))
    assert vouches(policy, binding, place.namespace)
    assert not vouches(policy, binding, "elsewhere")
    assert not vouches(policy, binding, place.namespace, made=policy["metadata"]["creationTimestamp"])
    weaker = yaml.safe_load(yaml.safe_dump(policy))
    del weaker["spec"]["validations"][0]
    assert not vouches(weaker, binding, place.namespace)
