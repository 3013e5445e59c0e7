"""A person's word that was given on a cluster, read by name.  Called by `promote`; docs/ledger.md says what it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import ValidationError

from contracts.admission import binding_name
from contracts.approvals import POLICY, Word, vouches, word_name
from contracts.errors import ConfigError
from contracts.references import LedgerEntry
from steps.rollout.cluster import Cluster


@dataclass(frozen=True)
class Given:
    """A word, and whether the cluster's admission vouched for who gave it."""

    name: str
    word: Word
    at: datetime
    authenticated: bool


class Words(Protocol):
    """Where words are."""

    def given(self, about: LedgerEntry, version: int, again: int = 0) -> Given | None:
        """Return the word on a version that answers an entry, None where there is none.

        `again` is how many answered it before: a request is answered once.
        """


class NoWords:
    """At the desk nobody leaves a word: the command line enters it in the ledger."""

    def given(self, about: LedgerEntry, version: int, again: int = 0) -> Given | None:  # noqa: ARG002  a port
        """Return None."""
        return None


@dataclass(frozen=True)
class ClusterWords:
    """Words in the namespace of the workflows."""

    cluster: Cluster
    policy: str = POLICY

    def given(self, about: LedgerEntry, version: int, again: int = 0) -> Given | None:
        """Return the word on a version that answers an entry.

        Raises
        ------
        ConfigError
            It can be changed, or does not speak of this entry.
        """
        name = word_name(about.id, version, again)
        found = self.cluster.get("ConfigMap", name)
        if found is None:
            return None
        try:
            word = Word.model_validate(found.get("data") or {})
        except ValidationError:
            raise ConfigError(f"ConfigMap {name} is no approval") from None
        if not found.get("immutable"):
            raise ConfigError(f"the approval {name} can be changed", remedy="an approval is an immutable ConfigMap")
        if (word.model, word.version, word.about, word.again) != (about.model, version, about.id, again):
            raise ConfigError(f"the approval {name} speaks of another version than its name says")
        made = str(found["metadata"]["creationTimestamp"])
        return Given(name, word, datetime.fromisoformat(made), self._authenticated(made))

    def _authenticated(self, made: str) -> bool:
        try:
            policy = self.cluster.get("ValidatingAdmissionPolicy", self.policy)
            bound = binding_name(self.cluster.namespace, self.policy)
            binding = self.cluster.get("ValidatingAdmissionPolicyBinding", bound)
        except ConfigError:  # it may not be read, or this Kubernetes has none
            return False
        return vouches(policy, binding, self.cluster.namespace, made)


def words() -> Words:
    """Return the words that this process can read: in a pod those of its namespace."""
    here = Cluster.inside()
    return ClusterWords(here) if here else NoWords()
