"""How a run can end, what a gate can say, and the states of a version: the vocabulary of every report."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How a run ended.  Only `FAILED` is an error."""

    PROMOTED = "promoted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    UNCHANGED = "unchanged"
    AWAITING_APPROVAL = "awaiting-approval"
    NOT_APPROVED = "not-approved"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


class Verdict(StrEnum):
    """What the validation gate says of a model."""

    PASSED = "passed"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"


class Promotion(StrEnum):
    """What the promotion gate says of a version."""

    APPROVED = "approved"
    UNCHANGED = "unchanged"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    AWAITING_APPROVAL = "awaiting-approval"
    NOT_APPROVED = "not-approved"
    SUPERSEDED = "superseded"


class State(StrEnum):
    """The state of a model version in the ledger."""

    REGISTERED = "registered"
    AWAITING = "awaiting"
    APPROVED = "approved"
    RELEASING = "releasing"
    SERVING = "serving"
    RETIRED = "retired"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"


class Note(StrEnum):
    """What the ledger says besides states: where MLflow's alias `production` was found, what was done about it, and
    what retention removed.
    """

    ALIAS_SET = "alias-set"
    ALIAS_MOVED = "alias-moved"
    ALIAS_RECALLED = "alias-recalled"
    REMOVED = "removed"
    """What a version was made of is not kept any longer; of version 0: what belonged to no version."""
