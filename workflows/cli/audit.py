"""`retrain audit`: does the ledger still say what it said?"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import DATA, ConfigError
from workflows.cli.desk import desk_home, desk_settings

app = typer.Typer(no_args_is_help=True, help="Check the ledger, and keep what shows that it was written anew.")

HEADS = Annotated[
    str, typer.Option(help="Folder or s3://bucket/prefix of signed heads; default: audit-heads beside the home.")
]
KEY = Annotated[Path, typer.Option(help="Ed25519 key in PEM; made when there is none.  No stage is given it.")]
_KEY = Path("~/.config/retrain/audit.pem")
_PUBLIC_KEY = _KEY.with_suffix(".pub")


@app.command()
def sign(heads: HEADS = "", key: KEY = _KEY) -> None:
    """Sign the newest entry of each model, and keep it outside the database.

    [bold]Examples[/bold]

      retrain audit sign

      retrain audit sign --heads s3://audit/retrain --key /mnt/token/audit.pem
    """
    from steps.audit import Head, fingerprint, keep, private_key
    from steps.audit import sign as signed
    from steps.ledger import Ledger
    from steps.storage import Storage

    settings = desk_settings(desk_home(must_exist=True))
    ledger, storage, secret = Ledger(settings.ledger.get_secret_value()), Storage(settings), private_key(_path(key))
    for model in ledger.models():
        entry = ledger.head(model)
        assert entry is not None  # noqa: S101  a model is known by its entries
        head = Head(model=model, number=entry.number, id=entry.id, signed_at=datetime.now(UTC))
        uri = keep(storage, _folder(heads), signed(head, secret))
        typer.echo(
            f"{model}: entry {head.number} ({head.id[:12]}) signed by key {fingerprint(secret.public_key())}: {uri}"
        )


@app.command()
def verify(
    heads: HEADS = "",
    key: Annotated[Path, typer.Option(help="The public key, in PEM.")] = _PUBLIC_KEY,
) -> None:
    """Say whether each model's chain is whole, and still holds every head that was signed.  Exit code 65: it does not.

    [bold]Examples[/bold]

      retrain audit verify

      retrain audit verify --heads s3://audit/retrain --key audit.pub
    """
    from steps.audit import public_key
    from steps.audit import verify as check
    from steps.ledger import Ledger
    from steps.storage import Storage

    settings = desk_settings(desk_home(must_exist=True))
    ledger, storage, folder = Ledger(settings.ledger.get_secret_value()), Storage(settings), _folder(heads)
    kept = {uri: storage.read(uri) for uri in storage.list(folder)}
    if heads and not kept:
        raise ConfigError(f"no signed head lies in {folder}")
    signer = public_key(_path(key)) if kept else None
    wrong = 0
    for model in sorted({*ledger.models(), *(uri.rsplit("/", 2)[-2] for uri in kept)}):
        own = {uri: data for uri, data in kept.items() if uri.rsplit("/", 2)[-2] == model}
        found = check(ledger, model, own, signer)
        wrong += len(found)
        for finding in found:
            typer.echo(f"{model}: {finding}")
        if not found:
            head = ledger.head(model)
            against = f"{len(own)} signed heads hold" if own else "no head was signed"
            typer.echo(f"{model}: {head.number if head else 0} entries, chain intact; {against}")
    raise typer.Exit(DATA.exit_code if wrong else 0)


@app.command()
def export(
    reference: Annotated[
        str, typer.Argument(metavar="[MODEL@]production|VERSION|...", help="Which version; see `retrain lineage`.")
    ] = "production",
) -> None:
    """Print how a version was made as an in-toto statement with SLSA provenance: JSON, from the ledger alone.

    [bold]Examples[/bold]

      retrain audit export

      retrain audit export adult-income@12 > provenance.json
    """
    from steps.archive import Archive, Reference
    from steps.attestation import statement

    asked = Reference.parse(reference)
    archive = Archive.open(desk_settings(desk_home(must_exist=True)), asked.model)
    history = archive.ledger.history(archive.model, archive.version(asked.name))
    if not history:
        raise ConfigError(f"the ledger does not know {reference}", remedy="it was registered by other means")
    typer.echo(json.dumps(statement(archive.model, history), indent=1))


def _path(path: Path) -> Path:
    return path.expanduser()


def _folder(heads: str) -> str:
    if "://" in heads:
        return heads
    return (Path(heads).resolve() if heads else desk_home().parent / "audit-heads").as_uri()
