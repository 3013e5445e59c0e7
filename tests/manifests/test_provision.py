"""What the chart's pods do to databases before anything else does, on a real PostgreSQL."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mlflow.db
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as database
from sqlalchemy import Engine, create_engine, inspect, text

from tests.steps.test_sources_postgresql import BIN, server  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed")
PROGRAM = Path(__file__).resolve().parents[2] / "kind" / "platform" / "files" / "provision.py"


@pytest.fixture(scope="module")
def provision() -> ModuleType:
    spec = importlib.util.spec_from_file_location("provision", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def empty(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:  # noqa: F811
    """A database of MLflow's own, which the program is pointed to."""
    url = server.replace("postgresql:", "postgresql+psycopg:")
    with create_engine(url, isolation_level="AUTOCOMMIT").connect() as admin:
        admin.execute(text("DROP DATABASE IF EXISTS mlflow WITH (FORCE)"))
        admin.execute(text("CREATE DATABASE mlflow"))
    own = url.replace("/postgres?", "/mlflow?")
    monkeypatch.setenv("DATABASE_URL", own)
    engine = create_engine(own)
    yield engine
    engine.dispose()


def test_tables_of_an_earlier_mlflow_are_brought_to_this_one(provision: ModuleType, empty: Engine) -> None:
    config = database._get_alembic_config(empty.url.render_as_string(hide_password=False))
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    before: Any = scripts.get_revision(head).down_revision
    database.InitialBase.metadata.create_all(empty)
    command.upgrade(config, before)
    with pytest.raises(MlflowException, match="out-of-date"):
        database._verify_schema(empty)

    provision.migrate({})

    database._verify_schema(empty)


def test_an_empty_database_is_filled_and_a_current_one_left_alone(
    provision: ModuleType, empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    provision.migrate({})
    database._verify_schema(empty)
    assert "experiments" in inspect(empty).get_table_names()

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("MLflow was imported for nothing")

    monkeypatch.setattr(mlflow.db.upgrade, "main", again)
    provision.migrate({})


OWNERS = {"owner": "retrain_ledger_owner", "reader": "retrain_ledger_reader", "writer": "retrain_ledger_writer"}


def test_a_database_whose_maker_was_killed_is_closed_to_others_by_the_next(
    provision: ModuleType,
    server: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(provision, "password", lambda _: "planted")
    monkeypatch.setenv("DATABASE_URL", server)
    names = ("mlflow", "mlflow_auth", "retrain_ledger")
    with create_engine(server.replace("postgresql:", "postgresql+psycopg:")).connect() as admin:
        admin = admin.execution_options(isolation_level="AUTOCOMMIT")
        admin.execute(text("DROP DATABASE IF EXISTS mlflow WITH (FORCE)"))
        for name in names:
            admin.execute(text(f"CREATE DATABASE {name}"))
        admin.execute(text("CREATE ROLE stranger LOGIN"))

        provision.databases({"ledger": OWNERS, "archive": False})

        may = "SELECT has_database_privilege(:who, :name, 'CONNECT')"
        assert [admin.scalar(text(may), {"who": "stranger", "name": name}) for name in names] == [False] * 3
        for role in ("reader", "writer"):
            assert admin.scalar(text(may), {"who": OWNERS[role], "name": "retrain_ledger"})
