"""Record what Argo does with each conformance case: ``python -m tests.conformance.record [CASE...]``.

Submits the cases to the cluster of the current KUBECONFIG, does to them what they say (pods deleted, suspended nodes
answered) and writes what came of it beside each case.  Makes the namespace and the rights it needs.  Not part of the
tests: run it when a case is new, or when Argo is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from contracts.access import EXECUTOR_RULES
from tests.conformance.case import Case, all_cases, normalise
from workflows.platform import policy_rules

GROUP = {"group": "argoproj.io", "version": "v1alpha1"}
HEAD = "# What Argo {version} did with {name}, written by tests.conformance.record.\n"
ENDED = ("Succeeded", "Failed", "Error")
POLL_SECONDS = 0.5


class Cluster:
    """The namespace that cases run in."""

    def __init__(self, namespace: str, patience: float) -> None:
        config.load_kube_config()
        self.namespace = namespace
        self.patience = patience
        self.core = client.CoreV1Api()
        self.custom = client.CustomObjectsApi()

    def prepare(self) -> None:
        """Make the namespace, and let its pods report to Argo."""
        metadata = {"name": "executor", "namespace": self.namespace}
        role = {"metadata": metadata, "rules": policy_rules(EXECUTOR_RULES)}
        binding = {
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "executor"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": self.namespace}],
        }
        rights = client.RbacAuthorizationV1Api()
        for make, arguments in (
            (self.core.create_namespace, ({"metadata": {"name": self.namespace}},)),
            (rights.create_namespaced_role, (self.namespace, role)),
            (rights.create_namespaced_role_binding, (self.namespace, binding)),
        ):
            try:
                make(*arguments)
            except ApiException as error:
                if error.status != 409:  # it is there already
                    raise

    def record(self, case: Case) -> dict[str, Any]:
        """Run a case to its end.

        Raises
        ------
        TimeoutError
            It has not ended in time; it is left for a look.
        """
        self._remove("workflows", case.name)
        for manifest in case.objects:
            self._put(manifest)
        self.custom.create_namespaced_custom_object(
            **GROUP, namespace=self.namespace, plural="workflows", body=submitted(case)
        )
        done: set[str] = set()
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            workflow = self.custom.get_namespaced_custom_object(
                **GROUP, namespace=self.namespace, plural="workflows", name=case.name
            )
            status = workflow.get("status") or {}
            if status.get("phase") in ENDED:
                self._remove("workflows", case.name)
                return normalise(workflow)
            for node in (status.get("nodes") or {}).values():
                if node["phase"] == "Running" and node["displayName"] not in done and self._act(case, node):
                    done.add(node["displayName"])
            time.sleep(POLL_SECONDS)
        raise TimeoutError(f"not ended after {self.patience:g} s")

    def _act(self, case: Case, node: Mapping[str, Any]) -> bool:
        """Do to a running node what the case says; tell whether that was all."""
        name = node["displayName"]
        if case.inject.get(name) == "deleted" and node["type"] == "Pod":
            self._delete_pod(case.name, node["id"])
            return False  # Argo makes it anew when it has not seen it running yet
        if name in case.answers and node["type"] == "Suspend":
            outputs = case.answers[name]
            choice = ["--node-field-selector", f"displayName={name}"] if outputs is not None else []
            for key, value in (outputs or {}).items():
                self._argo("node", "set", case.name, *choice, "--output-parameter", f"{key}={value}")
            self._argo("resume", case.name, *choice)
            return True
        return False

    def _delete_pod(self, workflow: str, node: str) -> None:
        label = f"workflows.argoproj.io/workflow={workflow}"
        for pod in self.core.list_namespaced_pod(self.namespace, label_selector=label).items:
            if pod.status.phase == "Running" and pod.metadata.annotations["workflows.argoproj.io/node-id"] == node:
                self.core.delete_namespaced_pod(pod.metadata.name, self.namespace, grace_period_seconds=0)

    def _argo(self, *words: str) -> None:
        subprocess.run(
            ["argo", "--loglevel", "error", "--namespace", self.namespace, *words],
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def _put(self, manifest: Mapping[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "WorkflowTemplate":
            self._remove("workflowtemplates", name)
            self.custom.create_namespaced_custom_object(
                **GROUP, namespace=self.namespace, plural="workflowtemplates", body=manifest
            )
            return
        kind = {"ConfigMap": "config_map", "Secret": "secret"}[manifest["kind"]]
        try:
            getattr(self.core, f"delete_namespaced_{kind}")(name, self.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
        getattr(self.core, f"create_namespaced_{kind}")(self.namespace, manifest)

    def _remove(self, plural: str, name: str) -> None:
        where = {**GROUP, "namespace": self.namespace, "plural": plural, "name": name}
        try:
            self.custom.delete_namespaced_custom_object(**where, propagation_policy="Foreground")
            while True:  # its pods bear the names of the next one's
                self.custom.get_namespaced_custom_object(**where)
                time.sleep(POLL_SECONDS)
        except ApiException as error:
            if error.status != 404:
                raise


def submitted(case: Case) -> dict[str, Any]:
    """Return the Workflow with what ``argo submit`` changes in it: its parameters and its entrypoint."""
    workflow = case.workflow
    spec = workflow["spec"]
    if case.entrypoint:
        spec["entrypoint"] = case.entrypoint
    if case.parameters:
        given = [{"name": name, "value": value} for name, value in case.parameters.items()]
        kept = [p for p in spec.get("arguments", {}).get("parameters", ()) if p["name"] not in case.parameters]
        spec["arguments"] = {"parameters": given + kept}
    return workflow


def write(case: Case, recording: Mapping[str, Any], version: str) -> None:
    """Write a recording beside its case."""
    text = yaml.safe_dump(recording, sort_keys=False, allow_unicode=True, width=120)
    case.recording.write_text(HEAD.format(version=version, name=case.name) + text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Record the cases that were named, or all; return how many failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.record", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="names of cases; all when left out")
    parser.add_argument("--missing", action="store_true", help="only cases that have no recording")
    parser.add_argument("--namespace", default="conformance", help="made when it is not there (%(default)s)")
    parser.add_argument("--argo", default="4.0.5", help="version of the cluster's Argo, for the file (%(default)s)")
    parser.add_argument("--workers", type=int, default=6, help="cases at a time (%(default)s)")
    parser.add_argument("--patience", type=float, default=180, help="seconds a case may take (%(default)s)")
    options = parser.parse_args(arguments)
    cases = {case.name: case for case in all_cases()}
    if unknown := [name for name in options.cases if name not in cases]:
        parser.error(f"no such case: {', '.join(unknown)}")
    wanted = [cases[name] for name in options.cases] or list(cases.values())
    wanted = [case for case in wanted if not (options.missing and case.recording.exists())]
    cluster = Cluster(options.namespace, options.patience)
    cluster.prepare()
    failed = 0
    with ThreadPoolExecutor(options.workers) as pool:
        for case, future in [(case, pool.submit(cluster.record, case)) for case in wanted]:
            try:
                recording = future.result()
            except (ApiException, TimeoutError, subprocess.CalledProcessError) as error:
                failed += 1
                why = error.body if isinstance(error, ApiException) else error
                print(f"{case.name}: {why}", file=sys.stderr)
                continue
            write(case, recording, options.argo)
            print(f"{case.name}: {recording['phase']}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
