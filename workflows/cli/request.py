"""What a run is given, at the desk or on a cluster: its name, its parameters and the user's modules.

Called by `run` and `submit`.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from contracts.pipeline import Pipeline
from contracts.settings import variable
from contracts.stages import Cache


def run_name(pipeline: str) -> str:
    """Return a new run's name."""
    return f"{pipeline}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}"


def run_parameters(*, source: str, as_of: str, version: int | None, no_cache: bool) -> dict[str, str]:
    """Return the parameters that the commands' options stand for."""
    return {
        "source": source,
        "cache": (Cache.REFUSE if no_cache else Cache.USE).value,
        "version": "" if version is None else str(version),
        "requested-by": requester(),
        **({"as-of": as_of} if as_of else {}),
    }


def requester() -> str:
    """Return who asks for a run: ``RETRAIN_USER``, else the user's name."""
    return os.environ.get(variable("user"), "") or operating_user()


def operating_user() -> str:
    """Return who runs this command, as the operating system has it: a name that nobody else vouches for."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user id, as in some containers
        return f"uid {os.getuid()}"


def packed_code(file: Path, pipeline: Pipeline) -> bytes:
    """Return the user's modules beside a pipeline file as an archive, empty when there are none."""
    if not (pipeline.user_modules or pipeline.code):
        return b""
    from serving.user_code import pack
    from steps.provenance import git_state

    stems = [module.replace(".", "/") for module in pipeline.user_modules]
    code = [f"{stem}{ending}" for stem in stems for ending in (".py", "/__init__.py")]
    # what makes the tree dirty is the code, not a data file or a home beside it
    commit = git_state(file.parent, file, (file.name, *code, *pipeline.code)).commit
    # a module of a package is installed where it runs, and preflight looks for it there
    return pack(file.parent, pipeline.user_modules, pipeline.code, commit, elsewhere=bool(pipeline.packages))
