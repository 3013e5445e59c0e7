"""Bring the ledger's table to this version as its owner: ``python -m steps.ledger_migration``, a job of the platform.

The stages' own roles may read and append, not create; so the table is there before the first of them asks.
"""

from __future__ import annotations

import os
import sys
import time

from contracts.errors import NetworkError, StageError, StorageError
from contracts.settings import variable
from steps.ledger import Ledger

_PATIENCE_SECONDS = 600


def main() -> int:
    """Make or find the table, while the database starts waiting for it; return the exit code of the error table."""
    ledger = Ledger(os.environ.get(variable("ledger"), ""))
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            ledger.head("none")  # any question makes the table first
        except StageError as error:
            # the role and the database come from a job that runs beside this one
            if time.monotonic() > deadline or not isinstance(error, (NetworkError, StorageError)):
                print(error.message, file=sys.stderr)
                return error.row.exit_code
            time.sleep(2)
        else:
            print("the ledger's table is there")
            return 0


if __name__ == "__main__":
    sys.exit(main())
