"""Whether `deploy` is kept to serving on a cluster.  Called by `doctor`."""

from __future__ import annotations

from contracts.admission import binding_name, in_force
from contracts.confinement import POLICY, SPEC
from contracts.errors import ConfigError
from contracts.settings import variable
from workflows.cluster.connection import Namespace


def serving(namespace: Namespace) -> str:
    """Return the namespace in which a platform's versions serve."""
    return namespace.settings.get(variable("serving_namespace")) or namespace.namespace


def confined(namespace: Namespace) -> bool:
    """Say whether the policy on what `deploy` writes is in place, as far as this person may see."""
    there = serving(namespace)
    try:
        policy = namespace.get("ValidatingAdmissionPolicy", POLICY)
        binding = namespace.get("ValidatingAdmissionPolicyBinding", binding_name(there, POLICY))
    except ConfigError:
        return False
    return in_force(policy, binding, SPEC, there)
