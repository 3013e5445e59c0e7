"""MLflow's registry, on a real SQLite store: one version a run, tags and aliases as projections."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.errors import ConfigError, NetworkError
from steps.mlflow_connection import mlflow_client
from steps.registry import Registry
from steps.world import World
from tests.steps.registered import finished_run, make_settings, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("home"))


@pytest.fixture
def registry(world: World, request: pytest.FixtureRequest) -> Registry:
    return Registry(world.settings, request.node.name.replace("_", "-"))


def source(world: World, run: str) -> str:
    return world.tracking.record(run).model_uri


def test_a_run_gets_one_version_however_often_it_asks(world: World, registry: Registry) -> None:
    run = finished_run(world)
    versions = {registry.register(run, source(world, run), {"retrain.dataset_sha256": "d"}) for _ in range(3)}
    assert versions == {1}
    assert registry.run_of(1) == run
    assert registry.source(1) == source(world, run)
    assert registry.tags(1)["retrain.dataset_sha256"] == "d"


def test_another_run_gets_the_next_version(world: World, registry: Registry) -> None:
    first, second = finished_run(world), finished_run(world)
    assert registry.register(first, source(world, first), {}) == 1
    assert registry.register(second, source(world, second), {}) == 2
    assert registry.register(first, source(world, first), {}) == 1


def test_of_versions_made_twice_the_lowest_stays(world: World, registry: Registry) -> None:
    run = finished_run(world)
    client = mlflow_client(world.settings)
    client.create_registered_model(registry.name)
    for _ in range(3):
        client.create_model_version(registry.name, source(world, run), run_id=run)
    assert registry.register(run, source(world, run), {}) == 1
    assert [v.version for v in client.search_model_versions(f"name = '{registry.name}'")] == [1]


def test_what_was_killed_before_its_tags_is_mended(world: World, registry: Registry) -> None:
    run = finished_run(world)
    client = mlflow_client(world.settings)
    client.create_registered_model(registry.name)
    client.create_model_version(registry.name, source(world, run), run_id=run)
    registry.register(run, source(world, run), {"retrain.code_commit": "abc"})
    assert registry.tags(1) == {"retrain.code_commit": "abc"}


def test_registers_that_come_at_once_agree(world: World, registry: Registry) -> None:
    run = finished_run(world)

    def once(_: int) -> int:
        mine = Registry(world.settings, registry.name)
        with world.ledger.exclusively(registry.name):
            return mine.register(run, source(world, run), {})

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(once, range(6))) == {1}
    assert len(mlflow_client(world.settings).search_model_versions(f"name = '{registry.name}'")) == 1


def test_an_alias_names_a_version(world: World, registry: Registry) -> None:
    assert registry.alias("production") is None
    run = finished_run(world)
    version = registry.register(run, source(world, run), {})
    registry.set_alias("production", version)
    registry.set_alias("production", version)
    assert registry.aliases() == {"production": 1}


def test_a_version_that_is_not_there_is_class_config(registry: Registry) -> None:
    with pytest.raises(ConfigError, match="has no version 7"):
        registry.run_of(7)


def test_a_server_that_does_not_answer_is_class_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    settings = make_settings(tmp_path, tracking_uri="http://127.0.0.1:1")
    with pytest.raises(NetworkError, match="did not answer"):
        Registry(settings, "m").aliases()
