"""Sign the newest entry of each model: ``python -m steps.audit.sign``, a CronJob of the platform.

Called by `retrain audit sign` too.  What is signed was verified first, also against all heads before it, those of
earlier keys included: a signature says that its key's owner saw a whole chain, and no head that does not hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from contracts.errors import DATA, ConfigError, Finding, NetworkError, StageError
from contracts.settings import load_settings, variable
from steps.audit.heads import Head, keep, kept, proof, sign, signed_by
from steps.audit.key import read_private, read_public
from steps.ledger import Ledger
from steps.storage import Storage

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PATIENCE_SECONDS = 60

Newest = Mapping[str, tuple[int, str]]
"""Model -> number and id of its newest entry."""
Verify = Callable[[str, Mapping[int, str]], list[Finding]]
"""A model, and ids by number -> what is wrong with its chain, held against them."""


@dataclass(frozen=True)
class Signing:
    """What came of one model: where its head lies now, or why it was not signed."""

    model: str
    line: str
    findings: tuple[Finding, ...] = ()


def sign_heads(
    newest: Newest,
    verify: Verify,
    storage: Storage,
    folder: str,
    key: Ed25519PrivateKey,
    at: datetime,
    *,
    earlier: Sequence[Ed25519PublicKey] = (),
) -> Iterator[Signing]:
    """Sign and keep the newest entry of each model whose chain is whole, and yield what came of it.

    Parameters
    ----------
    earlier : sequence of Ed25519PublicKey
        The public halves of keys before this one, whose heads hold too.

    Raises
    ------
    NetworkError, StorageError, ConfigError
        Of ledger and store.
    """
    there, keys = kept(storage, folder), [key.public_key(), *earlier]
    for model, (number, entry) in sorted(newest.items()):
        before, unsigned = proof(model, there, keys), f"{model}: entry {number} was not signed"
        if broken := verify(model, {**before.ids, number: entry}):
            why = "the ledger is not whole"
            yield Signing(model, f"{unsigned}: {why}", (*broken, *before.doubtful))
            continue
        if before.doubtful:
            why = "something lies among its heads that is none by this key or an earlier one, or was meddled with"
            yield Signing(model, f"{unsigned}: {why}", tuple(before.doubtful))
            continue
        head = Head(model=model, number=number, id=entry, signed_at=at)
        uri = keep(storage, folder, sign(head, key))
        if signer := signed_by(storage, uri, head, keys):  # of an earlier key's where this head was signed before
            yield Signing(model, f"{model}: entry {number} ({entry[:12]}) signed by key {signer}: {uri}")
        else:
            other = Finding(where=uri, what="is not the head that was to be kept there")
            yield Signing(model, f"{unsigned}: something else was put in its place", (other,))


def tell(signings: Iterator[Signing], say: Callable[[str], None]) -> int:
    """Say what came of each model, and return the exit code: 65 where one was not signed."""
    wrong = 0
    for signing in signings:
        say(signing.line)
        for finding in signing.findings:
            say(f"{signing.model}: {finding}")
        wrong += len(signing.findings)
    return DATA.exit_code if wrong else 0


def main() -> int:
    """Sign by the settings of this process; return the exit code of the error table."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return _sign_once()
        except StageError as error:
            # a network policy takes hold a moment after its pod has an address
            if isinstance(error, NetworkError) and time.monotonic() < deadline:
                time.sleep(2)
                continue
            print(error.message, file=sys.stderr)
            return error.row.exit_code


def _sign_once() -> int:
    settings = load_settings()
    if not settings.audit_heads:
        raise ConfigError(f"no place to keep heads: {variable('audit_heads')} is not set")
    pem, where = settings.audit_key.get_secret_value().encode(), variable("audit_key")
    key, earlier = read_private(pem, where), read_public(pem, where)
    ledger, storage = Ledger(settings.ledger.get_secret_value()), Storage(settings)
    signings = sign_heads(
        ledger.heads(), lambda model, heads: ledger.verify(model, heads=heads), storage, settings.audit_heads, key,
        datetime.now(UTC), earlier=earlier,
    )  # fmt: skip
    return tell(signings, lambda line: print(line, flush=True))


if __name__ == "__main__":
    sys.exit(main())
