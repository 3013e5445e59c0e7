"""Bring the ledger's table to this version as its owner: ``python -m steps.ledger.migration``, a job of the platform.

The stages' own roles may read and append, not create; so the table is there before the first of them asks.
"""

from __future__ import annotations

import os
import sys
import time

from contracts.errors import NetworkError, StageError, StorageError
from contracts.settings import variable
from steps.ledger.rows import SqlRows

_PATIENCE_SECONDS = 600


def main() -> int:
    """Make or upgrade the table, while the database starts waiting for it; return the exit code of the error table."""
    rows = SqlRows(os.environ.get(variable("ledger"), ""), busy_seconds=10)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            rows.upgrade()
        except StageError as error:
            # the role and the database come from a job that runs beside this one
            if time.monotonic() > deadline or not isinstance(error, (NetworkError, StorageError)):
                print(error.message, file=sys.stderr)
                return error.row.exit_code
            time.sleep(2)
        else:
            print("the ledger's table is of this version")
            return 0


if __name__ == "__main__":
    sys.exit(main())
