"""`retrain audit`: does the ledger still say what it said?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import DATA, ConfigError, Finding
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.options import CONTEXT, NAMESPACE, connected

if TYPE_CHECKING:
    from steps.ledger import Ledger
    from steps.storage import Storage

app = typer.Typer(no_args_is_help=True, help="Check the ledger, and keep what shows that it was written anew.")

HEADS = Annotated[
    str, typer.Option(help="Folder or s3://bucket/prefix of signed heads; default: audit-heads beside the home.")
]
KEY = Annotated[Path, typer.Option(help="Ed25519 key in PEM; made when there is none.  No stage is given it.")]
_KEY = Path("~/.config/retrain/audit.pem")
_PUBLIC_KEY = _KEY.with_suffix(".pub")


@app.command()
def sign(heads: HEADS = "", key: KEY = _KEY, namespace: NAMESPACE = "", context: CONTEXT = "") -> None:
    """Sign the newest entry of each model, and keep it outside the database.

    [bold]Examples[/bold]

      retrain audit sign

      retrain audit sign --heads s3://audit/retrain --key /mnt/token/audit.pem

      retrain audit sign -n mlops
    """
    from steps.audit import Head, fingerprint, keep, private_key
    from steps.audit import sign as signed

    storage, secret = _storage(must_exist=not (namespace or context)), private_key(_path(key))
    for model, (number, entry) in _newest(namespace, context).items():
        head = Head(model=model, number=number, id=entry, signed_at=datetime.now(UTC))
        uri = keep(storage, _folder(heads), signed(head, secret))
        typer.echo(f"{model}: entry {number} ({entry[:12]}) signed by key {fingerprint(secret.public_key())}: {uri}")


@app.command()
def verify(
    heads: HEADS = "",
    key: Annotated[Path, typer.Option(help="The public key, in PEM.")] = _PUBLIC_KEY,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Say whether each model's chain is whole, and still holds every head that was signed.  Exit code 65: it does not.

    [bold]Examples[/bold]

      retrain audit verify

      retrain audit verify --heads s3://audit/retrain --key audit.pub -n mlops
    """
    from steps.audit import public_key, signed_heads

    storage, folder = _storage(must_exist=not (namespace or context)), _folder(heads)
    kept = {uri: storage.read(uri) for uri in storage.list(folder)}
    if heads and not kept:
        raise ConfigError(f"no signed head lies in {folder}")
    signer = public_key(_path(key)) if kept else None
    newest, wrong = _newest(namespace, context), 0
    for model in sorted({*newest, *(uri.rsplit("/", 2)[-2] for uri in kept)}):
        own = {uri: data for uri, data in kept.items() if uri.rsplit("/", 2)[-2] == model}
        signed, doubtful = signed_heads(model, own, signer)
        found = [*_broken(model, signed, namespace, context), *doubtful]
        wrong += len(found)
        for finding in found:
            typer.echo(f"{model}: {finding}")
        if not found:
            against = f"{len(own)} signed heads hold" if own else "no head was signed"
            typer.echo(f"{model}: {newest.get(model, (0, ''))[0]} entries, chain intact; {against}")
    raise typer.Exit(DATA.exit_code if wrong else 0)


@app.command()
def export(
    reference: Annotated[
        str, typer.Argument(metavar="[MODEL@]production|VERSION|...", help="Which version; see `retrain lineage`.")
    ] = "production",
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Print how a version was made as an in-toto statement with SLSA provenance: JSON, from the ledger alone.

    [bold]Examples[/bold]

      retrain audit export

      retrain audit export adult-income@12 > provenance.json
    """
    if namespace or context:
        from workflows.cluster import audit as there

        typer.echo(json.dumps(there.export(connected(namespace, context), reference), indent=1))
        return
    from steps.archive import Archive
    from steps.attestation import statement

    archive, name = Archive.named(desk_settings(desk_home(must_exist=True)), reference)
    history = archive.ledger.history(archive.model, archive.version(name))
    if not history:
        raise ConfigError(f"the ledger does not know {reference}", remedy="it was registered by other means")
    typer.echo(json.dumps(statement(archive.model, history), indent=1))


def _newest(namespace: str, context: str) -> dict[str, tuple[int, str]]:
    """Return the number and id of each model's newest entry."""
    if namespace or context:
        from workflows.cluster import audit as there

        return there.heads(connected(namespace, context))
    ledger = _ledger()
    return {model: (entry.number, entry.id) for model in ledger.models() if (entry := ledger.head(model))}


def _broken(model: str, signed: Mapping[int, str], namespace: str, context: str) -> list[Finding]:
    if namespace or context:
        from workflows.cluster import audit as there

        return there.verify(connected(namespace, context), model, signed)
    return _ledger().verify(model, heads=signed)


def _ledger() -> Ledger:
    from steps.ledger import Ledger

    return Ledger(desk_settings(desk_home(must_exist=True)).ledger.get_secret_value())


def _storage(*, must_exist: bool) -> Storage:
    """Return where signed heads are kept, by this machine's settings."""
    from steps.storage import Storage

    return Storage(desk_settings(desk_home(must_exist=must_exist)))


def _path(path: Path) -> Path:
    return path.expanduser()


def _folder(heads: str) -> str:
    if "://" in heads:
        return heads
    return (Path(heads).resolve() if heads else desk_home().parent / "audit-heads").as_uri()
