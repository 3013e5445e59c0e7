"""Make what a component must hold before the pipeline runs; run by the chart's jobs, again at each upgrade.

``databases`` makes PostgreSQL's roles and databases, ``buckets`` the buckets and a user with a policy of its own for
each stage in MinIO, ``mlflow-users`` a user for each stage in MLflow.  ``migrate`` runs before MLflow and brings its
tables to that version.  Each finds what is there and changes only what differs.  Addresses and the administrator's
credentials come from the environment; passwords from the folder ``/passwords``, one file each; who gets what from
``/provision/plan.json``.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PLAN = Path("/provision/plan.json")
PASSWORDS = Path("/passwords")
PATIENCE_SECONDS = 600


def databases(plan: dict[str, Any]) -> None:
    """One database for MLflow, one for its users, one for the ledger, whose owner alone may change its table; one for
    Argo's archive where the controller is ours."""
    import psycopg
    from psycopg.sql import SQL, Identifier, Literal

    ledger = plan["ledger"]
    roles = {"mlflow": "mlflow-database", **{role: role for role in ledger.values()}}
    owners = {"mlflow": "mlflow", "mlflow_auth": "mlflow", "retrain_ledger": ledger["owner"]}
    if plan["archive"]:
        roles["argo"] = owners["argo"] = "argo"
    url = os.environ["DATABASE_URL"]
    with patiently(lambda: psycopg.connect(url, autocommit=True), psycopg.OperationalError) as admin:
        for role, file in roles.items():
            if not admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (role,)).fetchone():
                admin.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(role)))
            admin.execute(SQL("ALTER ROLE {} PASSWORD {}").format(Identifier(role), Literal(password(file))))
        for database, owner in owners.items():
            if not admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (database,)).fetchone():
                # an administrator who is no superuser, as in a managed database, must be a member of the owner
                admin.execute(SQL("GRANT {} TO CURRENT_USER").format(Identifier(owner)))
                admin.execute(SQL("CREATE DATABASE {} OWNER {}").format(Identifier(database), Identifier(owner)))
            # each time: whoever made the database may have been ended before this
            admin.execute(SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(Identifier(database)))
            log(f"database {database}, owner {owner}")
        for role in (ledger["reader"], ledger["writer"]):
            admin.execute(SQL("GRANT CONNECT ON DATABASE retrain_ledger TO {}").format(Identifier(role)))
    with psycopg.connect(url, dbname="retrain_ledger", autocommit=True) as admin:
        # an ALTER of defaults covers the table that the migration makes next, and those of later versions
        for role, rights in ((ledger["reader"], "SELECT"), (ledger["writer"], "SELECT, INSERT")):
            names = {"owner": Identifier(ledger["owner"]), "rights": SQL(rights), "role": Identifier(role)}
            for statement in (
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT {rights} ON TABLES TO {role}",
                "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT USAGE ON SEQUENCES TO {role}",
                "GRANT {rights} ON ALL TABLES IN SCHEMA public TO {role}",
            ):
                admin.execute(SQL(statement).format(**names))
            log(f"ledger role {role}: {rights}")


def buckets(plan: dict[str, Any]) -> None:
    """The buckets, and in MinIO one user a stage."""
    from minio import Minio, MinioAdmin
    from minio.credentials import StaticProvider
    from minio.error import MinioAdminException, S3Error
    from urllib3.exceptions import HTTPError

    endpoint = os.environ["S3_ENDPOINT"]
    host, secure = endpoint.split("://", 1)[1], endpoint.startswith("https:")
    user, secret = os.environ["S3_ADMIN"], os.environ["S3_ADMIN_PASSWORD"]
    store = Minio(endpoint=host, access_key=user, secret_key=secret, secure=secure)
    for bucket in plan["buckets"]:
        if not patiently(lambda bucket=bucket: store.bucket_exists(bucket_name=bucket), (HTTPError, S3Error)):
            store.make_bucket(bucket_name=bucket)
        log(f"bucket {bucket}")
    for bucket in plan["versioned"]:
        keep_versions(store, bucket)
    for bucket, retention in plan["locked"].items():
        lock(store, bucket, retention["mode"], retention["days"])
    admin = MinioAdmin(endpoint=host, credentials=StaticProvider(user, secret), secure=secure)
    for stage, rights in plan["stages"].items():
        name = f"retrain-{stage}"
        admin.policy_add(name, policy=policy(**{what: rights[what] for what in ("read", "write", "append", "remove")}))
        admin.user_add(name, password(f"s3-{stage}"))
        try:
            admin.policy_set(name, user=name)
        except MinioAdminException as error:
            if "already in effect" not in str(error):  # MinIO's answer when nothing changes
                raise
        did = {"reads": rights["read"], "writes": rights["write"], "removes": rights["remove"]}
        log(f"user {name}: " + "; ".join(f"{what} {', '.join(paths)}" for what, paths in did.items() if paths))


def keep_versions(store: Any, bucket: str) -> None:
    """A bucket where what is written over or deleted is still there, as a version that no stage may remove."""
    from minio.commonconfig import ENABLED
    from minio.versioningconfig import VersioningConfig

    store.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))
    log(f"bucket {bucket}: keeps versions")


def lock(store: Any, bucket: str, mode: str, days: int) -> None:
    """A bucket whose objects nobody may change or remove before so many days; a lock is only had from the start."""
    from minio.error import S3Error
    from minio.objectlockconfig import DAYS, ObjectLockConfig

    if not store.bucket_exists(bucket_name=bucket):
        store.make_bucket(bucket_name=bucket, object_lock=True)
    try:
        store.set_object_lock_config(bucket_name=bucket, config=ObjectLockConfig(mode, days, DAYS))
    except S3Error as error:
        if error.code != "InvalidBucketState":
            raise
        raise SystemExit(f"bucket {bucket} was made without an object lock; name another in buckets.audit") from None
    log(f"bucket {bucket}: {mode} for {days} days")


def policy(read: list[str], write: list[str], append: list[str], remove: list[str]) -> dict[str, Any]:
    """Return an S3 policy; listing is of whole buckets, or a missing object would look like a forbidden one."""

    def objects(paths: list[str]) -> list[str]:
        return [f"arn:aws:s3:::{path}/*" for path in paths]

    touched = sorted({path.split("/")[0] for path in (*read, *write, *append, *remove)})
    statements = [
        (
            ["s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation"],
            [f"arn:aws:s3:::{bucket}" for bucket in touched],
        ),
        (["s3:GetObject", "s3:GetObjectVersion"], objects([*read, *remove])),
        (["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"], objects(write)),
        (["s3:PutObject"], objects(append)),
        (["s3:DeleteObject"], objects(remove)),
    ]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": actions, "Resource": resources}
            for actions, resources in statements
            if resources
        ],
    }


def mlflow_users(plan: dict[str, Any]) -> None:
    """One user a stage that reaches MLflow, with a role of the stage's name; without a grant a user reads."""
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.server import get_app_client

    url = os.environ["MLFLOW_TRACKING_URI"]
    client = get_app_client("basic-auth", tracking_uri=url)
    unready = (requests.RequestException, MlflowException)
    roles = {role.name: role for role in patiently(client.list_all_roles, unready)}
    for stage, rights in plan["stages"].items():
        if not rights["tracking"]:
            continue
        name = f"retrain-{stage}"
        wanted = {(grant["resource"], grant["permission"]) for grant in rights["mlflow"]}
        try:
            client.get_user(name)
            client.update_user_password(name, password(f"mlflow-{stage}"))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            client.create_user(name, password(f"mlflow-{stage}"))
        role = roles.get(name) or client.create_role("default", name, f"Stage {stage} of retrain.")
        held = {(given.resource_type, given.permission): given.id for given in client.list_role_permissions(role.id)}
        for grant in held.keys() - wanted:
            client.remove_role_permission(held[grant])
        for resource, permission in sorted(wanted - held.keys()):
            client.add_role_permission(role.id, resource, "*", permission)
        if name not in {given.name for given in client.list_user_roles(name)}:
            client.assign_role(name, role.id)
        log(f"user {name}: {', '.join(f'{p} {r}' for r, p in sorted(wanted)) or 'reads'}")


def migrate(_: dict[str, Any]) -> None:
    """MLflow's tables, made or brought to what this version of it wants, once the database takes connections."""
    import psycopg

    url = os.environ["DATABASE_URL"]
    address = url.replace("postgresql+psycopg:", "postgresql:")
    with patiently(lambda: psycopg.connect(address, connect_timeout=5), psycopg.OperationalError) as database:
        made = database.execute("SELECT to_regclass('alembic_version') IS NOT NULL").fetchone() == (True,)
        found = {row[0] for row in database.execute("SELECT version_num FROM alembic_version")} if made else set()
    if found == newest(Path(find_spec("mlflow").origin).parent / "store" / "db_migrations" / "versions"):
        return  # as after most starts; to import MLflow takes seconds, on a busy machine a minute

    from mlflow.db import upgrade

    upgrade.main([url], standalone_mode=False)  # its command, without the password among a process's arguments
    log("MLflow's tables are of this version")


def newest(migrations: Path) -> set[str]:
    """Return the revisions that none of Alembic's migrations in a folder goes on from."""
    texts = [file.read_text(encoding="utf-8") for file in migrations.glob("*.py")]
    revisions, before = (
        {found for text in texts for found in re.findall(rf"^{name} = [\"'](\w+)", text, re.MULTILINE)}
        for name in ("revision", "down_revision")
    )
    return revisions - before


def patiently(action: Callable[[], T], errors: type[Exception] | tuple[type[Exception], ...]) -> T:
    """Do something until it succeeds: components start side by side."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    for pause in pauses():
        try:
            return action()
        except errors as error:
            if time.monotonic() > deadline:
                raise
            log(f"not yet: {type(error).__name__}")
            time.sleep(pause)
    raise AssertionError("pauses never end")


def pauses() -> Iterator[float]:
    """Yield 1 s, 2 s, then 4 s for ever."""
    yield from (1, 2)
    while True:
        yield 4


def password(name: str) -> str:
    """Return a password that the chart made."""
    return (PASSWORDS / name).read_text(encoding="utf-8")


def log(text: str) -> None:
    """Say what is there; never a password."""
    print(text, flush=True)


COMMANDS = {"databases": databases, "buckets": buckets, "mlflow-users": mlflow_users, "migrate": migrate}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](json.loads(PLAN.read_text(encoding="utf-8")))
