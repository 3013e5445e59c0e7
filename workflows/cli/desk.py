"""The desk: one folder on this machine that holds everything, and the settings that follow from it.

Called by every command that runs, asks or serves without a cluster.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError

from contracts.errors import MEMORY_GROWTH_CAP, ConfigError, Finding
from contracts.pipeline import Pipeline
from contracts.settings import Settings, desk, find_home, size, variable
from contracts.stages import SIZED

SECRETS_FILE = "secrets.env"
SIGNING_KEY = "signing.pem"
"""In the home: the key that models are signed by, and its public half, the one that is trusted, as signing.pub."""


def desk_home(*, must_exist: bool = False) -> Path:
    """Return the desk's home; see `contracts.settings.find_home`.

    Raises
    ------
    ConfigError
        With `must_exist`, when there is none yet.
    """
    home = find_home()
    if must_exist and not home.is_dir():
        raise ConfigError(
            f"nothing was run here: {home} does not exist", remedy="`retrain run FILE` first, or set RETRAIN_HOME"
        )
    return home


def desk_environment(home: Path, source_base: Path) -> dict[str, str]:
    """Return the desk's settings as ``RETRAIN_*`` variables, and what else ``secrets.env`` in the home holds.

    The caller's own ``RETRAIN_*`` variables come first, then the secrets file, then the desk's defaults.

    Raises
    ------
    ConfigError
        The secrets file or the signing key can be read by others, or cannot be read.
    """
    known = {variable(field) for field in Settings.model_fields}
    own = {name: value for name, value in os.environ.items() if name in known}
    return desk(home, source_base) | _whole_machine() | _keys(home) | _secrets(home / SECRETS_FILE) | own


def desk_settings(home: Path, source_base: Path | None = None) -> Settings:
    """Return the desk's settings.

    Raises
    ------
    ConfigError
        As `desk_environment`; and with one finding a setting that is wrong.
    """
    values = desk_environment(home, source_base or home.parent)
    try:
        return Settings.model_validate(
            {field: values[variable(field)] for field in Settings.model_fields if variable(field) in values}
        )
    except ValidationError as error:
        wrong = [
            Finding(where=variable(str(e["loc"][0])), what=e["msg"], remedy="set it right") for e in error.errors()
        ]
        raise ConfigError("settings are missing or wrong", findings=wrong) from None


def make_signing_key(home: Path) -> None:
    """See that the home has a key to sign models by.

    Raises
    ------
    ConfigError
        As `steps.keys.private_key`.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    from steps.keys import private_key

    private_key(home / SIGNING_KEY, ec.EllipticCurvePrivateKey, lambda: ec.generate_private_key(ec.SECP256R1()))


def desk_packages(pipeline: Pipeline, home: Path) -> str:
    """Return the folder of the packages that the pipeline's own modules need, brought where they are not here yet.

    Raises
    ------
    ConfigError, NetworkError
        As `steps.own_packages.resolve` and `install`.
    """
    if not pipeline.packages:
        return ""
    from steps.own_packages import install, resolve

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    lock = resolve(pipeline.packages, python, home)
    return str(install(lock, home)) if lock else ""


def release_turn(settings: Settings, model: str) -> AbstractContextManager[None]:
    """Hold the right to release a model on this machine; where something else serves, `deploy` alone sets aliases.

    Raises
    ------
    ConfigError
        It is served elsewhere.
    """
    from steps.rollout.process import Server

    if settings.deploy_target != "process":
        raise ConfigError(f"{model} is not served by this machine", remedy="the next release there sets the alias")
    return Server.of(settings, model).turn()


def _whole_machine() -> dict[str, str]:
    """Let a stage use what this machine has, where that is more than it declares.

    The base is such that the last attempt, which has `MEMORY_GROWTH_CAP` times as much, fits three quarters of the
    machine: a stage that needs more than its base is tried again with 2 and 4 times, as the error table says.
    """
    mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    base = mib * 3 // 4 // MEMORY_GROWTH_CAP
    return {size(stage.name, "memory"): str(max(base, stage.memory_mib)) for stage in SIZED}


def _keys(home: Path) -> dict[str, str]:
    """Return the home's keys; without any, a model is neither signed nor trusted."""
    from serving.model_keys import body
    from steps.keys import for_its_owner

    private = home / SIGNING_KEY
    public = private.with_suffix(".pub")
    if not (for_its_owner(private) and public.exists()):
        return {}
    try:
        found = {variable("signing_key"): private.read_text(encoding="ascii")}
        return found | {variable("model_keys"): body(public.read_text(encoding="ascii"))}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"cannot read {private} or its .pub", remedy="a key in PEM, and its public half") from None


def _secrets(path: Path) -> dict[str, str]:
    from steps.keys import for_its_owner

    if not for_its_owner(path):
        return {}
    try:
        return {name: value or "" for name, value in dotenv_values(path, interpolate=False).items()}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"cannot read {path}", remedy="one NAME=value a line, UTF-8") from None
