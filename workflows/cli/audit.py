"""`retrain audit`: does the ledger still say what it said?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import DATA, ConfigError, Finding
from contracts.outcomes import Note, State
from contracts.settings import variable
from workflows.cli.checks import by_whom, why
from workflows.cli.desk import desk_home, desk_settings
from workflows.cli.options import AT, CONTEXT, NAMESPACE, connected, rfc3339

if TYPE_CHECKING:
    from contracts.references import LedgerEntry
    from steps.audit.heads import Kept, Proof
    from steps.ledger import Ledger
    from steps.storage import Storage

app = typer.Typer(no_args_is_help=True, help="Check the ledger, and keep what shows that it was written anew.")

HEADS = Annotated[
    str,
    typer.Option(
        help="Folder or s3://bucket/prefix of signed heads; default: where the settings say, else audit-heads beside "
        "the home."
    ),
]
KEY = Annotated[
    Path,
    typer.Option(
        help="Ed25519 key in PEM, followed by the public halves of keys before it; made when there is none.  No stage "
        "is given it."
    ),
]
_KEY = Path("~/.config/retrain/audit.pem")
_PUBLIC_KEY = _KEY.with_suffix(".pub")


@app.command()
def sign(heads: HEADS = "", key: KEY = _KEY, namespace: NAMESPACE = "", context: CONTEXT = "") -> None:
    """Sign the newest entry of each model, and keep it outside the database.

    Exit code 65: a chain is not whole, or something among its heads does not hold; no head was signed then.

    On a cluster the platform's own CronJob does so; with -n this machine does too, with a key and a place of its own.

    [bold]Examples[/bold]

      retrain audit sign

      retrain audit sign --heads s3://audit/retrain --key /mnt/token/audit.pem

      retrain audit sign -n mlops
    """
    from steps.audit.key import private_key, read_public
    from steps.audit.sign import sign_heads, tell

    path = _path(key)
    signer = private_key(path)
    signings = sign_heads(
        _newest(namespace, context), lambda model, signed: _broken(model, signed, namespace, context),
        _storage(must_exist=not (namespace or context)), _folder(heads), signer, datetime.now(UTC),
        earlier=read_public(path.read_bytes(), str(path)),
    )  # fmt: skip
    raise typer.Exit(tell(signings, typer.echo))


@app.command("key")
def public(key: KEY = _KEY, namespace: NAMESPACE = "", context: CONTEXT = "") -> None:
    """Print the public key of the heads: to be kept where those who may change the ledger can't reach.

    With -n, that of the platform in a namespace, from its Secret, which its administrator may read: once, when the
    platform was installed.

    [bold]Examples[/bold]

      retrain audit key

      retrain audit key -n mlops > audit.pub
    """
    from steps.audit.key import private_key
    from steps.keys import public_text

    if namespace or context:
        from workflows.cluster import audit as there

        typer.echo(public_text(there.key(connected(namespace, context))), nl=False)
        return
    if not _path(key).exists():
        raise ConfigError(f"{key} is not there", remedy="`retrain audit sign` makes it")
    typer.echo(public_text(private_key(_path(key))), nl=False)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="One model; default: all.", show_default=False)] = "",
    heads: Annotated[
        str,
        typer.Option(
            help="Folder or s3://bucket/prefix of signed heads; default: where this machine, or the cluster, keeps "
            "them."
        ),
    ] = "",
    key: Annotated[
        Path | None,
        typer.Option(
            help="The public key, in PEM; after a change of keys, all of them in one file.  Where it is named, a model "
            "without a signed head is a finding.  Default: this machine's own.",
            show_default=False,
        ),
    ] = None,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Say whether each model's chain is whole, and still holds every head that was signed.

    Exit code 65: it does not; or none was signed, and --key was given.

    [bold]Examples[/bold]

      retrain audit verify

      retrain audit verify -n mlops --key audit.pub

      retrain audit verify -n mlops --heads copies/ --key audit.pub
    """
    from steps.audit.heads import proof
    from steps.audit.key import public_keys

    kept = _kept(heads, namespace, context)
    if heads and not kept.contents:
        raise ConfigError(f"no signed head lies in {heads}")
    signers = public_keys(_path(key or _PUBLIC_KEY)) if key or kept.contents else []
    newest, wrong = _newest(namespace, context), 0
    known = {*newest, *kept.models()}
    if model and model not in known:
        raise ConfigError(f"neither ledger nor heads know a model {model!r}", remedy=f"they know {', '.join(known)}")
    if not known:
        typer.echo("no entries")
    for name in sorted({model} if model else known):
        proven = proof(name, kept, signers)
        found = [*_broken(name, proven.ids, namespace, context), *proven.doubtful]
        if key and proven.newest is None:
            found.append(Finding(where="heads", what="none was signed; right after the first entry, sign one"))
        wrong += len(found)
        for finding in found:
            typer.echo(f"{name}: {finding}")
        if not found:
            typer.echo(f"{name}: {newest.get(name, (0, ''))[0]} entries, chain intact; {_against(proven)}")
    raise typer.Exit(DATA.exit_code if wrong else 0)


@app.command()
def log(
    what: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL@]VERSION|...",
            show_default=False,
            help="Of which versions: as in `retrain lineage`; a hash may stand for several.  Default: all.",
        ),
    ] = "",
    only: Annotated[
        list[str] | None, typer.Option(help="Only entries of this state or note; as often as needed.")
    ] = None,
    at: AT = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON, evidence included.")] = False,
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Print the ledger's entries, oldest first: what happened, to which version, by whom and why.

    [bold]Examples[/bold]

      retrain audit log

      retrain audit log 3fa9c01d9e

      retrain audit log --only failed --only rolled-back --at 2026-11-01T12:00:00Z

      retrain audit log adult-income@12 --json
    """
    moment, kinds = rfc3339(at, "--at"), {*State, *Note}
    if unknown := [kind for kind in only or () if kind not in kinds]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(sorted(kinds))}", param_hint="--only")
    found = [entry for entry in _entries(what, moment, namespace, context) if not only or entry.state in only]
    if json_output:
        typer.echo(json.dumps([entry.model_dump(mode="json") for entry in found], indent=1))
        return
    for entry in found:
        typer.echo(
            f"{entry.at:%Y-%m-%d %H:%M:%S}  {entry.model} {entry.version:<4} {entry.state.value:<14} "
            f"{by_whom(entry)}: {why(entry)}  {entry.id[:12]}"
        )


@app.command()
def export(
    reference: Annotated[
        str, typer.Argument(metavar="[MODEL@]production|VERSION|...", help="Which version; see `retrain lineage`.")
    ] = "production",
    at: AT = "",
    namespace: NAMESPACE = "",
    context: CONTEXT = "",
) -> None:
    """Print how a version was made as an in-toto statement with SLSA provenance: JSON, from the ledger alone.

    [bold]Examples[/bold]

      retrain audit export

      retrain audit export adult-income@12 > provenance.json
    """
    moment = rfc3339(at, "--at")
    if namespace or context:
        from workflows.cluster import audit as there

        typer.echo(json.dumps(there.export(connected(namespace, context), reference, moment), indent=1))
        return
    from steps.archive import Archive
    from steps.audit.attestation import provenance

    archive, name = Archive.named(desk_settings(desk_home(must_exist=True)), reference)
    typer.echo(json.dumps(provenance(archive, name, moment), indent=1))


def _entries(what: str, at: datetime | None, namespace: str, context: str) -> list[LedgerEntry]:
    if namespace or context:
        from workflows.cluster import audit as there

        return there.entries(connected(namespace, context), what, at)
    from steps.archive import entries_of

    return entries_of(desk_settings(desk_home(must_exist=True)), what, at)


def _newest(namespace: str, context: str) -> dict[str, tuple[int, str]]:
    """Return the number and id of each model's newest entry."""
    if namespace or context:
        from workflows.cluster import audit as there

        return there.heads(connected(namespace, context))
    return _ledger().heads()


def _broken(model: str, signed: Mapping[int, str], namespace: str, context: str) -> list[Finding]:
    if namespace or context:
        from workflows.cluster import audit as there

        return there.verify(connected(namespace, context), model, signed)
    return _ledger().verify(model, heads=signed)


def _ledger() -> Ledger:
    from steps.ledger import Ledger

    return Ledger(desk_settings(desk_home(must_exist=True)).ledger.get_secret_value())


def _kept(heads: str, namespace: str, context: str) -> Kept:
    """Return the signed heads of a place that was named, else of the cluster, which may keep none, or this machine."""
    from steps.audit.heads import Kept, kept

    if not heads and (namespace or context):
        from workflows.cluster import audit as there

        place = connected(namespace, context)
        return there.kept(place) if place.settings.get(variable("audit_heads")) else Kept()
    return kept(_storage(must_exist=not (namespace or context)), _folder(heads))


def _against(proven: Proof) -> str:
    """Say what it was held against, and up to where that proves anything."""
    if proven.newest is None:
        return "no head was signed"
    last = proven.newest
    return (
        f"{len(proven.ids)} signed heads hold, the last of entry {last.number} at {last.signed_at:%Y-%m-%d %H:%M} UTC"
    )


def _storage(*, must_exist: bool) -> Storage:
    """Return where signed heads are kept, by this machine's settings."""
    from steps.storage import Storage

    return Storage(desk_settings(desk_home(must_exist=must_exist)))


def _path(path: Path) -> Path:
    return path.expanduser()


def _folder(heads: str) -> str:
    heads = heads or desk_settings(desk_home()).audit_heads
    if "://" in heads:
        return heads
    return (Path(heads).resolve() if heads else desk_home().parent / "audit-heads").as_uri()
