"""What a duty's probe finds with that duty's rights: in MLflow, the ledger, the registry, a quota, at the hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine, text

from contracts.access import ACCESS, KANIKO
from contracts.errors import ConfigError, Finding, NetworkError
from contracts.names import REGISTRY_SECRET
from contracts.pipeline import load_pipeline
from contracts.probes import DUTIES, PROBES
from contracts.settings import Settings, desk, variable
from contracts.stages import STAGES, Need, Preflight, Probe
from steps.ledger import Ledger
from steps.probe import examine
from steps.probes.places import check_hosts, check_images, image_notes
from steps.probes.release import quota_findings
from steps.world import World
from tests.loopback import Handler, free_port, serving
from tests.steps.registered import NOW
from tests.steps.test_sources_postgresql import BIN, server  # noqa: F401  a fixture

ADULT = Path(__file__).parents[2] / "adult.yaml"
DIGEST = "sha256:" + "0" * 64


@pytest.fixture
def world(tmp_path: Path) -> World:
    values = desk(tmp_path, ADULT.parent)
    settings = Settings.model_validate({f: values[variable(f)] for f in Settings.model_fields if variable(f) in values})
    return World(settings=settings, pipeline=load_pipeline(ADULT), pipeline_path=ADULT, workflow="w-1", now=lambda: NOW)


def under(world: World, duty: str = "train", **settings: Any) -> World:
    needs = ACCESS[duty].needs
    changed = world.settings.model_copy(update=settings)
    return replace(world, settings=changed, duty=duty, needs=needs)


def found(world: World) -> list[str]:
    return [str(found.finding) for found in examine(Probe.Inputs(), world).found]


def test_every_stage_and_kaniko_has_a_probe_and_nobody_else() -> None:
    assert set(DUTIES) == {stage.account for stage in STAGES} - {Preflight.name} | {KANIKO}
    assert [probe.name for probe in PROBES] == [f"preflight-{duty}" for duty in DUTIES]
    assert all(probe.needs == ACCESS[probe.account].needs for probe in PROBES)


@pytest.mark.parametrize("duty", DUTIES)
def test_a_desk_in_order_has_no_finding_whatever_the_duty(duty: str, world: World) -> None:
    examined = examine(Probe.Inputs(), under(world, duty))

    assert examined.found == ()
    assert examined.checks >= len(ACCESS[duty].needs)
    assert [path for path in Path(urlsplit(world.settings.store).path).rglob("*") if path.is_file()] == []


@contextmanager
def mlflow(
    *, refused: str = "", experiment: bool = True, model: bool = True
) -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """What MLflow's server answers of its REST interface: to all but `refused` as to one with the right."""
    asked: list[tuple[str, dict[str, Any]]] = []
    there = {
        "experiments/get-by-name": {"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}},
        "registered-models/get": {"registered_model": {"name": "adult-income"}},
    }
    absent = {name for name, is_there in (("experiments", experiment), ("registered-models", model)) if not is_there}

    class Server(Handler):
        def answer(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/api/2.0/mlflow/")
            content = self.rfile.read(int(self.headers.get("content-length", 0)))
            asked.append((path, json.loads(content or "{}")))
            status, body = 200, there.get(path, {"experiment_id": "8"})
            if path == refused:
                status, body = 403, {}
            elif path in there and path.split("/")[0] in absent:
                status, body = 404, {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_POST(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def do_DELETE(self) -> None:
            self.answer()

    with serving(Server) as port:
        yield f"http://127.0.0.1:{port}", asked


@pytest.mark.parametrize(
    ("duty", "refused", "there", "what"),
    [
        ("train", "experiments/set-experiment-tag", True, "write to experiment adult-income"),
        ("evaluate", "experiments/set-experiment-tag", True, "write to experiment adult-income"),
        ("train", "experiments/create", False, "create experiment adult-income"),
        ("register", "registered-models/create", False, "create registered models"),
        ("register", "registered-models/set-tag", True, "write to registered model adult-income"),
        ("promote", "registered-models/set-tag", True, "write to registered model adult-income"),
        ("deploy", "registered-models/set-tag", True, "write to registered model adult-income"),
        ("deploy", "registered-models/get", True, "read registered model adult-income"),
    ],
)
def test_what_mlflow_does_not_let_a_duty_do_is_found(
    duty: str, refused: str, there: bool, what: str, world: World
) -> None:
    with mlflow(refused=refused, experiment=there, model=there) as (url, _):
        assert found(under(world, duty, tracking_uri=url)) == [
            f"RETRAIN_MLFLOW_USERNAME: MLflow does not let its user {what}: 403 "
            "(give it what docs/rights.md says of this stage)"
        ]


@pytest.mark.parametrize(("duty", "writes"), [("build", False), ("train", True), ("deploy", True)])
def test_only_who_writes_in_mlflow_tries_to_and_takes_it_back(duty: str, writes: bool, world: World) -> None:
    with mlflow() as (url, asked):
        assert found(under(world, duty, tracking_uri=url)) == []

    made = [path for path, _ in asked if path.rsplit("/", 1)[1].startswith("set-")]
    gone = [path for path, _ in asked if path.rsplit("/", 1)[1].startswith("delete-")]
    assert [path.replace("/set-", "/delete-") for path in made] == gone
    assert bool(made) == writes


def test_a_registry_without_the_model_is_tried_by_one_of_another_name_that_goes_again(world: World) -> None:
    with mlflow(model=False) as (url, asked):
        assert found(under(world, "register", tracking_uri=url)) == []
        assert found(under(world, "promote", tracking_uri=url)) == []  # it may not make one

    names = [(path, body["name"]) for path, body in asked if path.startswith("registered-models/") and "name" in body]
    trial = "adult-income-preflight-w-1"
    assert names == [("registered-models/create", trial), ("registered-models/delete", trial)]


def test_a_deleted_experiment_is_found_before_training(world: World) -> None:
    class Deleted(Handler):
        def do_POST(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}')

    with serving(Deleted) as port:
        [finding] = found(under(world, tracking_uri=f"http://127.0.0.1:{port}"))

    assert finding.startswith("experiment adult-income: was deleted in MLflow")


def test_an_entry_that_is_tried_is_not_kept(world: World) -> None:
    ledger = Ledger(world.settings.ledger.get_secret_value())

    ledger.try_append()

    assert ledger.models() == []


@pytest.mark.skipif(BIN is None, reason="PostgreSQL is not installed")
def test_who_only_reads_the_ledger_is_found_before_it_must_write(server: str, world: World) -> None:  # noqa: F811
    Ledger(server).try_append()
    admin = create_engine(server.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE ROLE reader LOGIN"))
        connection.execute(text("GRANT SELECT ON ledger TO reader"))
    admin.dispose()
    reader = admin.url.set(drivername="postgresql", username="reader").render_as_string(hide_password=False)

    [finding] = found(under(world, "register", ledger=SecretStr(reader)))

    assert "the ledger's database refuses us (SQLSTATE 42501)" in finding
    assert Ledger(server).models() == []


def test_a_registry_that_does_not_answer_is_a_passing_fault_of_who_builds(world: World) -> None:
    kaniko = {"build": "kaniko", "insecure_registry": True, "serving_image": f"serving@{DIGEST}"}
    silent = {**kaniko, "image_registry": f"127.0.0.1:{free_port()}/models"}
    for duty in ("build", KANIKO):
        [one] = examine(Probe.Inputs(), under(world, duty, **silent)).found
        assert (one.error_class, one.own) == ("network", True)
        assert "the registry 127.0.0.1:" in one.finding.what

    class Registry(Handler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

    with serving(Registry) as port:
        answering = under(world, **kaniko, image_registry=f"127.0.0.1:{port}/m")
        assert [*check_images(Probe.Inputs(), answering), *image_notes(Probe.Inputs(), answering)] == []
    with pytest.raises(ConfigError) as refused:
        list(check_images(Probe.Inputs(), under(world, build="kaniko")))
    assert {finding.where for finding in refused.value.findings} == {
        "RETRAIN_IMAGE_REGISTRY", "RETRAIN_SERVING_IMAGE",
    }  # fmt: skip


def test_a_registry_that_wants_a_login_is_noted_since_kaniko_alone_has_one(world: World) -> None:
    class Closed(Handler):
        def do_HEAD(self) -> None:
            self.send_response(401)
            self.end_headers()

    kaniko = {"build": "kaniko", "insecure_registry": True, "serving_image": f"serving@{DIGEST}"}
    with serving(Closed) as port:
        examined = examine(Probe.Inputs(), under(world, "build", **kaniko, image_registry=f"127.0.0.1:{port}/m"))

    assert not [each for each in examined.found if "registry" in each.finding.what]
    [note] = examined.notes
    assert (note.where, REGISTRY_SECRET in note.remedy) == ("RETRAIN_IMAGE_REGISTRY", True)


QUOTA = {
    "metadata": {"name": "small"},
    "spec": {},
    "status": {"hard": {"pods": "10", "requests.memory": "2Gi"}, "used": {"pods": "4", "requests.memory": "1536Mi"}},
}


@pytest.mark.parametrize(
    ("pods", "status", "short"),
    [
        (1, {}, []),
        (2, {}, ["requests.memory"]),
        (7, {}, ["pods", "requests.memory"]),
        (1, {"hard": {"requests.cpu": "200m"}, "used": {}}, ["requests.cpu"]),
        (1, {"hard": {"configmaps": "0"}}, []),
        (0, {"hard": {"pods": "4"}, "used": {"pods": "4"}}, []),
    ],
)
def test_a_quota_without_room_for_a_release_is_found(
    pods: int, status: dict[str, Any], short: list[str], world: World
) -> None:
    quota = {**QUOTA, "status": {**QUOTA["status"], **status}}  # type: ignore[dict-item]

    told = list(quota_findings(quota, world.settings, pods))

    assert [finding.what.split(":")[0] for finding in told] == short
    assert all(finding.where == "ResourceQuota small" for finding in told)
    assert list(quota_findings({**quota, "spec": {"scopes": ["BestEffort"]}}, world.settings, pods)) == []


def hosts(world: World, *urls: str) -> list[Finding]:
    return list(check_hosts(Probe.Inputs(), under(world, "notify", notify_urls=SecretStr(" ".join(urls)))))


def test_a_notification_url_is_looked_at_before_there_is_anything_to_tell(world: World) -> None:
    class Anything(Handler):
        pass

    with serving(Anything) as port:
        assert hosts(world, f"json://127.0.0.1:{port}/token") == []
    assert [f.what for f in hosts(world, "nonsense://x")] == ["URL 1 is not one that Apprise knows"]
    with pytest.raises(NetworkError) as silent:
        hosts(world, f"json://127.0.0.1:{free_port()}/secret-token")
    assert "URL 1 of RETRAIN_NOTIFY_URLS does not answer" in silent.value.message
    assert "secret-token" not in str(silent.value.report("notify"))


def test_a_probe_reaches_nothing_that_its_duty_does_not_declare(world: World) -> None:
    with pytest.raises(RuntimeError, match=f"does not declare that it reaches the {Need.LEDGER.value}"):
        _ = under(world, "train").ledger


def test_whatever_a_check_raises_on_purpose_is_a_finding_of_its_class(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    broken = under(world, "features", store=(tmp_path / "file" / "store").as_uri())

    [one] = examine(Probe.Inputs(), broken).found

    assert (one.error_class, one.own, one.finding.where) == ("config", True, "store")
