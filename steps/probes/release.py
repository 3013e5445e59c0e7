"""Whether a release can be made on the cluster: rights, the objects themselves, and room in the namespace's quota."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from contracts.access import GRADUAL_RULES, RELEASE_RULES
from contracts.errors import ConfigError, Finding
from contracts.names import STAGE_SECRET
from contracts.settings import Settings, variable
from contracts.stages import Deploy
from steps.build import REFERENCE
from steps.rollout.cluster import VERSIONS, Cluster, NotThere, Object
from steps.rollout.kubernetes import Kubernetes
from steps.rollout.objects import Version, objects
from steps.world import World

_POD = {"pods": 1, "count/pods": 1}


def release_findings(world: World) -> Iterator[Finding]:
    """Yield what the cluster will refuse; it keeps nothing of what is asked.

    Raises
    ------
    ConfigError
        There is no image to serve with, or no such namespace.
    NetworkError
        The API server does not answer.
    """
    target = Kubernetes.of(world)
    if world.settings.build == REFERENCE:
        target.reference()
    if target.exports:
        if world.pipeline.release.gradual:
            yield Finding(
                where="release.strategy",
                what=f"{world.pipeline.release.strategy} is not exported: its parts must be applied in an order",
                remedy="release: {strategy: rolling}, or RETRAIN_DEPLOY_TARGET=kubernetes",
            )
        from steps.probes.places import probed

        yield from probed(target.exported_folder, world, reads=False, writes=True)
        return
    if world.pipeline.release.gradual and (missing := list(_gradual_missing(world, target.cluster))):
        yield from missing
        return
    refused = list(_refused(target.cluster, gradual=world.pipeline.release.gradual))
    yield from refused or _objects_refused(world, target.cluster)
    deployment = target.cluster.get("Deployment", target.name)
    least = world.settings.serving_min_replicas
    # canary and blue-green have as many again, to adopt what serves or beside it
    surge = {"rolling": 1, "recreate": 0}.get(world.pipeline.release.strategy, least)
    more = least if deployment is None else surge
    for quota in target.cluster.select("ResourceQuota"):
        yield from quota_findings(quota, world.settings, more)


def quota_findings(quota: dict[str, Any], settings: Settings, pods: int) -> Iterator[Finding]:
    """Yield what a ResourceQuota leaves too little of for so many more servers."""
    from kubernetes.utils.quantity import parse_quantity

    if quota["spec"].get("scopes") or quota["spec"].get("scopeSelector"):  # it may not count our pods
        return
    cpu, memory = f"{settings.serving_cpu}m", f"{settings.serving_memory}Mi"
    one = {**_POD, "cpu": cpu, "requests.cpu": cpu, "limits.memory": memory}
    one |= {"memory": memory, "requests.memory": memory}
    status = quota.get("status") or {}
    for resource, hard in (status.get("hard") or {}).items():
        if resource not in one:
            continue
        used = (status.get("used") or {}).get(resource, "0")
        if parse_quantity(hard) - parse_quantity(used) < parse_quantity(one[resource]) * pods:
            yield Finding(
                where=f"ResourceQuota {quota['metadata']['name']}",
                what=f"{resource}: {used} of {hard} used, a release needs {one[resource]} for each of {pods} more pods",
                remedy="raise the quota, or lower the size or number of servers in the settings",
            )


def _gradual_missing(world: World, cluster: Cluster) -> Iterator[Finding]:
    """Yield what a canary or a blue-green release cannot be made without."""
    strategy = world.pipeline.release.strategy
    remedy = "release: {strategy: rolling} does without"
    for kind, product in (("Rollout", "Argo Rollouts"), ("TraefikService", "Traefik")):
        if not cluster.knows(kind):
            what = f"{strategy} needs {product}; the cluster has no {kind} of {VERSIONS[kind]}"
            yield Finding(where="release.strategy", what=what, remedy=f"install it, or: {remedy}")
    if not world.settings.prometheus_url:
        yield Finding(
            where=variable("prometheus_url"),
            what=f"{strategy} judges by Prometheus, and none is named",
            remedy=f"set it to Prometheus's address as Argo Rollouts reaches it, or: {remedy}",
        )


def _refused(cluster: Cluster, *, gradual: bool) -> Iterator[Finding]:
    missing = [
        f"{verb} {resource}"
        for rule in (*RELEASE_RULES, *(GRADUAL_RULES if gradual else ()))
        for group in rule.groups
        for resource in rule.resources
        for verb in rule.verbs
        if not cluster.may(verb, group, resource)
    ]
    if missing:
        yield Finding(
            where=f"namespace {cluster.namespace}",
            what=f"its service account may not {', '.join(missing)}",
            remedy="give it the role that docs/rights.md says of deploy",
        )


def confinement_notes(world: World) -> Iterator[Finding]:
    """Say that nothing keeps a release from the keys of whoever else lives in the namespace.

    Raises
    ------
    NetworkError
        The API server does not answer.
    """
    target, here = Kubernetes.of(world), Cluster.inside()
    if target.exports or here is None or here.namespace != target.cluster.namespace:
        return
    deployment = next(each for each in _objects(world, target.cluster) if each["kind"] == "Deployment")
    another = {"name": "another", "secret": {"secretName": STAGE_SECRET.format(stage=Deploy.name), "optional": True}}
    deployment["spec"]["template"]["spec"]["volumes"].append(another)
    with contextlib.suppress(ConfigError):
        target.cluster.apply(deployment, only_ask=True)
        yield Finding(
            where=f"namespace {target.cluster.namespace}",
            what="deploy could give what serves any Secret and account here, the platform's and every stage's too",
            remedy="an administrator: kubectl apply -f kind/deploy-policy.yaml, or namespaces.serving of its own",
        )


def _objects_refused(world: World, cluster: Cluster) -> Iterator[Finding]:
    for each in _objects(world, cluster):
        try:
            cluster.apply(each, only_ask=True)
        except NotThere:
            raise
        except ConfigError as error:
            yield Finding(where=f"{each['kind']} {each['metadata']['name']}", what=error.message, remedy=error.remedy)


def _objects(world: World, cluster: Cluster) -> list[Object]:
    """Return every object of a release as it would be, but for the version."""
    version = Version(
        model=world.pipeline.name, version=1, run_id="preflight", dataset_sha256="", commit="",
        image=world.settings.serving_image or "preflight",
    )  # fmt: skip
    return objects(
        version, world.pipeline.release, world.settings, cluster.namespace, entry="", workflow=world.workflow
    )
