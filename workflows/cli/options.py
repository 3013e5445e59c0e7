"""Options that several commands share, and which of them go together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import ConfigError
from contracts.names import RELEASE, RETRAIN
from contracts.pipeline.source import credential_in
from contracts.settings import variable

if TYPE_CHECKING:
    from workflows.cluster.connection import Namespace

SOURCE = Annotated[str, typer.Option(help="Read this instead of the file's source.")]
AS_OF = Annotated[str, typer.Option("--as-of", help="The moment the run stands for, RFC 3339; default: now.")]
VERSION = Annotated[int | None, typer.Option(help="With --entrypoint release: the version to release.")]
NO_CACHE = Annotated[bool, typer.Option("--no-cache", help="Take nothing from earlier runs.")]
REQUIRE_PROMOTED = Annotated[
    bool, typer.Option("--require-promoted", help="Exit 3 unless the outcome is promoted or unchanged.")
]
REASON = Annotated[str, typer.Option(help="Why; kept in the ledger.", show_default=False)]
RESULT_AS_JSON = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
AT = Annotated[str, typer.Option(help="As it was at this moment, RFC 3339.")]
NAMESPACE = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", envvar=variable("namespace"), help="A namespace of a cluster; that of KUBECONFIG."
    ),
]
WAIT = Annotated[bool, typer.Option("--wait/--no-wait", help="On a cluster: follow the run to its end.")]
CONTEXT = Annotated[str, typer.Option(help="A context of KUBECONFIG; the current one.")]


def rfc3339(text: str, option: str) -> datetime | None:
    """Read a moment with its time zone; None for an empty text."""
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no RFC 3339 moment", param_hint=option) from None
    if moment is not None and moment.tzinfo is None:
        raise typer.BadParameter("says no time zone: end it with Z for UTC", param_hint=option)
    return moment


def connected(namespace: str, context: str) -> Namespace:
    """Return the namespace that was asked for; see `Namespace.connect`."""
    from workflows.cluster.connection import Namespace

    return Namespace.connect(namespace, context)


def check_options(entrypoint: str, *, source: str, as_of: str, version: int | None, no_cache: bool) -> None:
    """Refuse options that do not go together.

    Raises
    ------
    typer.BadParameter
        With the first of them.
    """
    if entrypoint not in (RETRAIN, RELEASE):
        raise typer.BadParameter("retrain or release", param_hint="--entrypoint")
    if entrypoint == RELEASE and version is None:
        raise typer.BadParameter("--entrypoint release needs --version", param_hint="--version")
    if entrypoint == RETRAIN and version is not None:
        raise typer.BadParameter("goes with --entrypoint release; a retraining makes its own", param_hint="--version")
    rfc3339(as_of, "--as-of")
    if entrypoint == RELEASE and (source or as_of or no_cache):
        raise typer.BadParameter("release reads no data", param_hint="--source, --as-of, --no-cache")
    if what := credential_in(source):
        raise ConfigError(
            f"--source holds {what}, and parameters are written down",
            remedy="name the URL in source.uri with {{secret:NAME}}, and set NAME in secrets.env",
        )


def pairs(words: Sequence[str]) -> dict[str, str]:
    """Read NAME=VALUE, as often as given."""
    for word in words:
        if "=" not in word:
            raise typer.BadParameter(f"{word} is not NAME=VALUE", param_hint="-p")
    return {name: value for name, _, value in (word.partition("=") for word in words)}
