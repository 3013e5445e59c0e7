"""Which requests are recorded: by a hash of the request, so that every server of it decides alike.  Called by
`serving.app`; two versions that get the same request keep it both or neither, which joins their records.
"""

from __future__ import annotations

import hashlib

REQUEST_ID = "x-request-id"


def request_key(request_id: str | None, body: bytes) -> bytes:
    """Return what stands for a request: the hash (SHA-256) of the id that its caller gave it, else of its body."""
    return hashlib.sha256(request_id.encode() if request_id else body).digest()


def is_sampled(key: bytes, share: float) -> bool:
    """Say whether a request is among `share` (0 to 1) of all; whoever is in a share is in every larger one."""
    return int.from_bytes(key[:8]) < share * 2.0**64
