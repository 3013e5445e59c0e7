"""Heads of the ledger, signed and kept where the database's owner can't reach: what shows a history written anew.

Called by `retrain audit` and, on a cluster, by `steps.audit.sign`, with a key that no stage is given.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, ValidationError

from contracts.base import Contract, Sha256
from contracts.errors import Finding
from steps.audit.key import fingerprint
from steps.ledger.chain import canonical
from steps.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_VERSION = "?versionId="
"""Between the name of an object and that of a version which is not its newest."""


class Head(Contract):
    """The newest entry of a model at some moment."""

    model: str
    number: int
    id: Sha256
    signed_at: AwareDatetime


class SignedHead(Contract):
    """A head and the Ed25519 signature of its canonical JSON."""

    head: Head
    signature: str
    key: str
    """See `steps.audit.key.fingerprint`."""

    def signer(self, keys: Sequence[Ed25519PublicKey]) -> Ed25519PublicKey | None:
        """Return the key whose owner signed this head, None when none of these did."""
        from cryptography.exceptions import InvalidSignature

        for key in keys:
            with suppress(InvalidSignature, ValueError):
                key.verify(base64.b64decode(self.signature), _payload(self.head))
                return key
        return None


class Kept(Contract):
    """What lies where signed heads are kept."""

    contents: dict[str, str] = {}
    """Name -> content of each, of every version that the store has of it, as the model's folder and below."""
    hidden: tuple[str, ...] = ()
    """Names that were deleted, or written over with something else, though their object is there: what a bucket under
    object lock does."""

    def models(self) -> set[str]:
        """Return the models that it speaks of, by their folders."""
        return {_folder_of(name) for name in self.contents}

    def of(self, model: str) -> Kept:
        """Return what is of one model."""
        return Kept(
            contents={name: text for name, text in self.contents.items() if _folder_of(name) == model},
            hidden=tuple(name for name in self.hidden if _folder_of(name) == model),
        )


@dataclass
class Proof:
    """What signed heads say of a model: ids by number, when the last was signed, and what proves nothing."""

    ids: dict[int, str] = field(default_factory=dict)
    newest: Head | None = None
    doubtful: list[Finding] = field(default_factory=list)


def sign(head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """Return a head with its signature."""
    signature = base64.b64encode(key.sign(_payload(head))).decode()
    return SignedHead(head=head, signature=signature, key=fingerprint(key.public_key()))


def keep(storage: Storage, folder: str, signed: SignedHead) -> str:
    """Write a signed head beside those before it and return its URI; what lies there already is left."""
    uri = f"{folder.rstrip('/')}/{signed.head.model}/{signed.head.number:09d}-{signed.head.id[:12]}.json"
    if not storage.exists(uri):
        storage.write(uri, signed.model_dump_json(indent=1).encode())
    return uri


def signed_by(storage: Storage, uri: str, head: Head, keys: Sequence[Ed25519PublicKey]) -> str:
    """Return by which key (its fingerprint) what lies there is a signature of that entry; empty when it is none."""
    signed, _ = _read(head.model, storage.read(uri).decode("utf-8", errors="replace"), keys)
    if signed is None or (signed.head.number, signed.head.id) != (head.number, head.id):
        return ""
    signer = signed.signer(keys)
    return fingerprint(signer) if signer else ""


def kept(storage: Storage, folder: str) -> Kept:
    """Return what lies in a folder or bucket of signed heads, what was deleted or overwritten under a lock included."""
    there = set(storage.list(folder))
    contents: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    for uri, version in storage.versions(folder):
        # the text is for people and JSON; bytes that are none are no signed head either
        text = storage.read(uri, version).decode("utf-8", errors="replace")
        if (uri, text) in seen:  # written again as it was, by a restore or a request that was sent twice
            continue
        seen.add((uri, text))
        contents[f"{uri}{_VERSION}{version}" if version and uri in contents else uri] = text
    return Kept(contents=contents, hidden=tuple(sorted(contents.keys() - there)))


def proof(model: str, found: Kept, keys: Sequence[Ed25519PublicKey]) -> Proof:
    """Return what the signed heads of a model prove under any of these keys; one that proves nothing is named.

    Two heads that say different things of one entry hold against any chain: the ledger was written anew in between.
    """
    own, result = found.of(model), Proof()
    for name in own.hidden:
        what = "overwritten" if _VERSION in name else "deleted"
        result.doubtful.append(Finding(where=name, what=f"was {what}; the object lock kept it"))
    for name, text in sorted(own.contents.items()):
        signed, objection = _read(model, text, keys)
        if signed is None:
            result.doubtful.append(Finding(where=name, what=objection))
            continue
        head = signed.head
        if (other := result.ids.setdefault(head.number, head.id)) != head.id:
            what = f"was signed as {other[:12]} and as {head.id[:12]}: the ledger was written anew in between"
            result.doubtful.append(Finding(where=f"entry {head.number}", what=what))
        result.newest = max(filter(None, (result.newest, head)), key=lambda one: (one.number, one.signed_at))
    return result


def _read(model: str, text: str, keys: Sequence[Ed25519PublicKey]) -> tuple[SignedHead | None, str]:
    """Return a head that holds, or what is wrong with it."""
    try:
        signed = SignedHead.model_validate(json.loads(text))
    except (ValidationError, ValueError):
        return None, "is no signed head"
    if signed.signer(keys) is None:
        return None, f"its signature does not hold (key {signed.key})"
    if signed.head.model != model:
        return None, f"is a head of {signed.head.model}, put in another's place"
    return signed, ""


def _folder_of(name: str) -> str:
    return name.partition(_VERSION)[0].rsplit("/", 2)[-2]


def _payload(head: Head) -> bytes:
    return canonical(head.model_dump(mode="json")).encode()
