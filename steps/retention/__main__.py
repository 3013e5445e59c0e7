"""``python -m steps.retention [REQUESTED_BY]``: the main process of a pod with the duty `retention`.

It removes what the policy no longer keeps, and leaves its answer, as JSON, where the manifest reads it.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from contracts import names
from contracts.errors import StageError
from contracts.settings import load_settings, variable
from steps.retention.sweep import apply

LOG = logging.getLogger("retrain")
ANSWER = "answer"
_SHOWN = 200
"""Things that the answer names, beside the total: it is a parameter, which Kubernetes bounds.  The log has all."""


def main(requested_by: str = "") -> int:
    """Remove what the policy no longer keeps, and return the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    workflow = os.environ.get(variable("workflow"), "retention")
    # a parameter of the workflow, in which whoever submits it may say any name
    by = f"{requested_by} (unauthenticated)" if requested_by else workflow
    try:
        done = apply(load_settings(), datetime.now(UTC), workflow=workflow, by=by, tell=LOG.info)
    except StageError as error:
        LOG.error("%s: %s%s", error.row.name, error.message, f" ({error.remedy})" if error.remedy else "")
        return error.row.exit_code
    outputs = Path(os.environ.get(variable("outputs"), names.OUTPUTS_MOUNT))
    outputs.mkdir(parents=True, exist_ok=True)
    (outputs / ANSWER).write_text(done.shortened(_SHOWN).model_dump_json(), encoding="utf-8")
    LOG.info("removed %d things, %d bytes", done.total.things, done.total.size)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
