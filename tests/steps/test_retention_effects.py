"""Retention's effects, one by one: in which order, on disk and on S3, cut off anywhere, and beside others."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError
from contracts.outcomes import Note, State
from contracts.settings import desk, variable
from steps.images import exists
from steps.ledger import Ledger
from steps.lifecycle import standing
from steps.retention import __main__ as pod
from steps.retention import survey as looking
from steps.retention import sweep
from steps.retention.sweep import apply, look
from steps.reuse import Remembered
from steps.world import World
from tests.loopback import Handler, s3_server, serving
from tests.steps.kept_things import (
    LATER,
    MODEL,
    SERVED,
    Made,
    contents,
    enter,
    ingest_report,
    make,
    put_dataset,
    put_the_rest,
    run_stages,
)
from tests.steps.registered import make_settings, make_world

SECOND = timedelta(seconds=1)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def world(tmp_path: Path) -> World:
    return archiving(make_world(tmp_path), (tmp_path / "cold").as_uri())


@pytest.fixture(params=["disk", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    on_disk = make_world(tmp_path)
    if request.param == "disk":
        return archiving(on_disk, (tmp_path / "cold").as_uri())
    names = ("MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    for name in names:
        monkeypatch.setenv(name, "x")  # MLflow's client sets them for the whole process
    changed = {
        "store": "s3://store", "artifacts": "s3://models", "s3_endpoint": request.getfixturevalue("s3"),
        "aws_access_key_id": "a", "aws_secret_access_key": "b",
    }  # fmt: skip
    world = archiving(replace(on_disk, settings=make_settings(tmp_path, **changed)), "s3://archive/a?b")
    for bucket in ("store", "models", "archive"):
        world.storage._s3().create_bucket(Bucket=bucket)
    return world


def archiving(world: World, archive: str, **changed: Any) -> World:
    settings = world.settings.model_copy(update={"retention_archive": archive, **changed})
    return replace(world, settings=settings)


def history(world: World) -> tuple[Made, Made, Made, Made]:
    """Version 1 serves; 2 was rejected, and shares the dataset of 1; 3 was rejected; a run has no version."""
    first = make(world, "a")
    enter(world, first, *SERVED)
    second, third = make(world, "b", dataset=first.dataset), make(world, "c")
    for made in (second, third):
        enter(world, made, State.REJECTED)
    world.registry.set_alias("staging", first.version)
    return first, second, third, make(world, "d", registered=False)


def done(world: World, now: datetime = LATER) -> sweep.Outlook:
    return apply(world.settings, now, workflow="retention-1", by="ann")


def goes(outlook: sweep.Outlook) -> set[str]:
    return {decision.key for decision in outlook.goes}


def test_what_goes_goes_to_the_archive_first_and_what_stays_is_untouched(anywhere: World) -> None:
    world = anywhere
    first, second, third, fourth = history(world)
    put_the_rest(world)
    before = contents(world)

    found = done(world)

    after = contents(world)
    a, c, d = ("datasets/" + letter * 64 for letter in "acd")
    assert goes(found) == {
        "version:adult-income@2", "version:adult-income@3", *(f"run:{made.run_id}" for made in (second, third, fourth)),
        c, d, *(f"splits/{x * 64}" for x in "bcd"), *(f"code/{x * 64}.zip" for x in "bcd"), f"reports/{fourth.run_id}",
        "predictions/adult-income/2020-01-01", "cache/evaluate/0.json", "fits/retrain-1", "builds/b", "logs/retrain-9",
    }  # fmt: skip
    assert {uri for uri in after if a in uri} == {f"{first.dataset}/data.parquet", f"{first.dataset}/dataset.json"}
    assert world.storage.exists(world.storage.uri("export", "deployment.yaml")), "what is not known is left alone"
    assert after.items() <= before.items()
    removed = before.items() - after.items()
    archive = world.settings.retention_archive.replace("?", "%3F")
    roots = {f"{world.settings.store}/": "store", f"{world.settings.artifacts}/": "artifacts"}
    for uri, content in removed:
        root = next(root for root in roots if uri.startswith(root))
        assert world.storage.read(f"{archive}/{roots[root]}/{uri.removeprefix(root)}") == content
    stages = run_stages(world)
    assert stages == {first.run_id: "active", **{m.run_id: "deleted" for m in (second, third, fourth)}}
    assert found.left == ()
    assert sum(d.size for d in found.goes) == sum(len(content) for _, content in removed)
    assert goes(done(world)) == set()
    assert contents(world) == after
    assert world.ledger.verify(MODEL) == []


def test_an_answer_that_names_a_part_counts_all(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history(world)
    planned = look(world.settings, LATER)
    monkeypatch.setattr(pod, "load_settings", lambda: world.settings)
    monkeypatch.setattr(pod, "apply", lambda settings, _, **more: apply(settings, LATER, **more))
    monkeypatch.setattr(pod, "_SHOWN", 2)
    monkeypatch.setenv(variable("outputs"), str(tmp_path / "outputs"))

    assert pod.main("ann") == 0

    notes = [entry for entry in world.ledger.entries(MODEL) if entry.state is Note.REMOVED]
    assert {entry.by for entry in notes} == {"ann (unauthenticated)"}, "whoever submits it may say any name"
    answer = sweep.Outlook.model_validate_json((tmp_path / "outputs" / pod.ANSWER).read_text())
    assert len(answer.decisions) == 2 < answer.total.things
    assert answer.total == planned.total
    assert answer.total.size == sum(decision.size for decision in planned.goes) > 0


def test_each_removal_is_in_the_ledger_before_anything_is_touched(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, third, _ = history(world)
    before, planned = contents(world), look(world.settings, LATER)

    def stop(*_: object) -> None:
        raise ConfigError("the archive is full")

    monkeypatch.setattr(sweep.Storage, "copy", stop)
    with pytest.raises(ConfigError, match="is full"):
        done(world)

    assert contents(world) == before
    notes = [entry for entry in world.ledger.entries(MODEL) if entry.state is Note.REMOVED]
    assert {thing["key"] for note in notes for thing in note.evidence["removed"]} == goes(planned)
    assert [note.version for note in notes] == [0, 2, 3]
    of_third = notes[2].evidence
    assert {thing["key"] for thing in of_third["removed"]} >= {f"datasets/{'c' * 64}", f"run:{third.run_id}"}
    assert (of_third["dataset_sha256"], of_third["archive"]) == ("c" * 64, world.settings.retention_archive)
    assert (notes[2].run_id, notes[2].by, notes[2].at) == (third.run_id, "ann", LATER)


def test_a_removal_names_the_run_of_a_version_that_a_note_spoke_of_first(world: World) -> None:
    first = make(world, "a")
    enter(world, first, *SERVED)
    enter(world, Made(2, "", "", "", ""), Note.ALIAS_MOVED, alias="production", to=2)
    second = make(world, "b")
    enter(world, second, State.REJECTED)
    world.registry.set_alias("staging", first.version)
    done(world)
    of_second = [entry for entry in world.ledger.history(MODEL, second.version) if entry.state is Note.REMOVED]
    assert [entry.run_id for entry in of_second] == [second.run_id]


def test_what_a_run_used_lately_stays_though_it_is_old(world: World) -> None:
    first, _, third, fourth = history(world)
    split = make(world, "e", registered=False).split
    recent = LATER.timestamp() - 86400
    dataset = put_dataset(world, "f")
    used = [
        ingest_report(world, "retrain-7", dataset),
        remembered(world, "train", run_id=third.run_id, candidate="x"),
        remembered(world, "train", run_id=fourth.run_id, candidate="x"),
        remembered(world, "features", split=split, split_sha256="e" * 64, transform_sha256="e" * 64),
        world.storage.write(world.storage.uri("cache", "train", "other.json"), b"of another retrain"),
    ]
    for uri in used:
        os.utime(uri.removeprefix("file://"), (recent, recent))

    stays = {d.key for d in look(world.settings, LATER).decisions if d.keep}

    assert {f"datasets/{x * 64}" for x in "acdf"} <= stays
    assert {f"run:{third.run_id}", f"run:{fourth.run_id}", "version:adult-income@3", f"splits/{'e' * 64}"} <= stays
    assert "version:adult-income@2" not in stays
    assert f"datasets/{'e' * 64}" not in stays
    assert f"run:{first.run_id}" in stays


def remembered(world: World, stage: str, **outputs: str) -> str:
    kept = Remembered(outputs={"summary": "", "reused": False, **outputs}).model_dump_json().encode()
    return world.storage.write(world.storage.uri("cache", stage, f"{next(iter(outputs.values()))[-8:]}.json"), kept)


def test_a_run_of_another_store_and_a_version_of_other_means_stay(world: World) -> None:
    history(world)
    elsewhere = replace(world, settings=world.settings.model_copy(update={"store": f"{world.settings.store}-2"}))
    foreign, by_hand = make(elsewhere, "x", registered=False), make(world, "y", registered=False)
    world.registry._client.create_registered_model("own")
    source = world.tracking.record(by_hand.run_id).model_uri
    world.registry._client.create_model_version("own", source, run_id=by_hand.run_id)

    found = {d.key: d for d in look(world.settings, LATER).decisions}

    assert found[f"run:{foreign.run_id}"].reason == "a training of another store"
    assert found[f"run:{by_hand.run_id}"].reason == "a version of own in MLflow, which the ledger does not know"
    assert found[f"datasets/{'y' * 64}"].keep


def test_a_version_that_is_approved_in_the_middle_of_it_is_not_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, third, _ = history(world)
    seen = looking.survey

    def overtaken(*arguments: Any) -> Any:
        found = seen(*arguments)
        if world.ledger.state(MODEL, third.version) is State.REJECTED:
            enter(world, third, State.APPROVED)
        return found

    monkeypatch.setattr(sweep, "survey", overtaken)
    found = done(world)

    assert "version:adult-income@3" not in goes(found)
    assert world.storage.exists(f"{third.dataset}/data.parquet")
    assert standing(world.ledger.entries(MODEL)).removed.keys() == {0, 2}


def test_a_dataset_that_is_written_anew_after_its_note_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    history(world)
    enter_notes = sweep._enter

    def then_ingested(*arguments: Any) -> Any:
        yield from enter_notes(*arguments)
        uri = put_dataset(world, "c")
        for name in ("data.parquet", "dataset.json"):
            os.utime(f"{uri}/{name}".removeprefix("file://"), (LATER.timestamp(),) * 2)

    monkeypatch.setattr(sweep, "_enter", then_ingested)
    found = done(world)

    assert f"datasets/{'c' * 64}" not in goes(found)
    assert f"splits/{'c' * 64}" in goes(found)
    assert world.storage.exists(world.storage.uri("datasets", "c" * 64, "data.parquet"))


def test_a_dataset_loses_its_manifest_first(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    history(world)
    deleted: list[str] = []
    monkeypatch.setattr(sweep.Storage, "delete", lambda _, uri: deleted.append(uri))
    done(world)

    for letter in "cd":
        ours = [uri.rpartition("/")[2] for uri in deleted if f"datasets/{letter * 64}" in uri]
        assert ours == ["dataset.json", "data.parquet"]


def test_where_no_model_has_a_ledger_the_runs_own_gets_one(world: World) -> None:
    made = make(world, "a", registered=False)

    assert f"run:{made.run_id}" in goes(done(world))
    [note] = world.ledger.entries(MODEL)
    assert (note.state, note.version) == (Note.REMOVED, 0)
    put_dataset(world, "b")
    assert f"datasets/{'b' * 64}" in goes(done(world)), "what belongs to nobody is entered with the first model"


def test_files_of_an_mlflow_that_keeps_them_itself_are_left_to_it(world: World) -> None:
    _, _, third, _ = history(world)
    world = archiving(world, "", artifacts="")

    assert f"run:{third.run_id}" in goes(done(world))
    assert run_stages(world)[third.run_id] == "deleted"
    root = (Path(world.settings.store.removeprefix("file://")).parent / "artifacts").as_uri()
    assert any(third.run_id in uri for uri in world.storage.list(root))


class Registry(Handler):
    """Holds one manifest; `refuses` to delete it."""

    there, refuses = True, False

    def do_HEAD(self) -> None:
        self.send_response(200 if type(self).there else 404)
        self.send_header("docker-content-digest", self.path.rpartition("/")[2])
        self.end_headers()

    def do_DELETE(self) -> None:
        if not type(self).refuses:
            type(self).there = False
        self.send_response(405 if type(self).refuses else 202)
        self.end_headers()


@pytest.mark.parametrize("refuses", [False, True])
def test_an_image_that_was_built_for_a_version_goes_where_the_registry_lets_it(world: World, refuses: bool) -> None:
    class One(Registry):
        pass

    One.refuses = refuses
    with serving(One) as port:
        image = f"127.0.0.1:{port}/adult-income@sha256:{'1' * 64}"
        world = archiving(world, "", retention_delete_images=True, insecure_registry=True)
        first, made = make(world, "a"), make(world, "b")
        enter(world, made, State.APPROVED)
        enter(world, made, State.RELEASING, image=image, image_holds_model=True)
        enter(world, made, State.FAILED)
        world.registry.set_alias("staging", first.version)
        soon, years = done(world), done(world, LATER + timedelta(days=4000))

        assert image not in goes(soon), "it may have answered someone"
        assert image in goes(years)
        assert exists(image, world.settings) is refuses
        assert years.left == ((f"{image}: its registry answers 405 to a deletion",) if refuses else ())
        again = done(world, LATER + timedelta(days=4001))
        assert (image in goes(again)) is refuses, "what was refused is asked again"


def test_an_image_is_named_and_left_unless_the_settings_say_so(world: World) -> None:
    image = f"127.0.0.1:1/adult-income@sha256:{'1' * 64}"
    first, made = make(world, "a"), make(world, "b")
    enter(world, made, State.APPROVED)
    enter(world, made, State.RELEASING, image=image, image_holds_model=True)
    enter(world, made, State.FAILED)
    world.registry.set_alias("staging", first.version)
    far = LATER + timedelta(days=4000)

    assert done(world, far).left == (f"{image}: yours to delete: RETRAIN_RETENTION_DELETE_IMAGES is off",)
    assert image in {t["key"] for t in world.ledger.history(MODEL, made.version)[-1].evidence["removed"]}
    assert image not in goes(look(world.settings, far)), "it was told"


KILLED = """
import os, signal, sys
from datetime import datetime
from contracts.settings import load_settings
from steps.ledger import Ledger
from steps.retention.runs import Runs
from steps.retention.sweep import apply
from steps.storage import Storage

left, done = int(sys.argv[2]), 0

def counted(of, name):
    effect = getattr(of, name)
    def then_die(*arguments, **named):
        global done
        answer = effect(*arguments, **named)
        done += 1
        if done == left:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer
    setattr(of, name, then_die)

for of, name in ((Ledger, "append"), (Storage, "copy"), (Storage, "delete"), (Runs, "mark"), (Runs, "remove")):
    counted(of, name)
apply(load_settings(), datetime.fromisoformat(sys.argv[1]), workflow="retention-1", by="ann")
print(done)
"""


def removing(folder: Path, kill_after: int = 0) -> subprocess.CompletedProcess[str]:
    """Remove in a process of its own, which dies after so many effects."""
    own = desk(folder, folder) | {variable("retention_archive"): (folder / "cold").as_uri()}
    words = [sys.executable, "-c", KILLED, LATER.isoformat(), str(kill_after)]
    return subprocess.run(words, env={**os.environ, **own}, capture_output=True, text=True, check=False)


def end_state(folder: Path) -> dict[str, Any]:
    """Everything that matters afterwards, read without MLflow's client, which keeps a connection to what was there."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        runs = dict(database.execute("SELECT run_uuid, lifecycle_stage FROM runs").fetchall())
        models = dict(database.execute("SELECT model_id, lifecycle_stage FROM logged_models").fetchall())
        tags = database.execute("SELECT version, key FROM model_version_tags WHERE key = 'retrain.removed'").fetchall()
    ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}")
    assert ledger.verify(MODEL) == []
    removed = [e for e in ledger.entries(MODEL) if e.state is Note.REMOVED]
    files = {
        str(p): p.read_bytes() for n in ("store", "artifacts", "cold") for p in folder.glob(f"{n}/**/*") if p.is_file()
    }
    return {
        "runs": runs, "models": models, "tags": sorted(tags), "files": files,
        "noted": {t["key"] for e in removed for t in e.evidence["removed"]},
        "versions": {e.version for e in removed},
    }  # fmt: skip


def cut_off_at(folder: Path, kills: Callable[[int], list[int]]) -> None:
    folder.mkdir()
    world = make_world(folder)
    first, *_ = history(world)
    put_the_rest(world)
    needed = {p: c for p, c in contents(world).items() if first.run_id in p or "/" + "a" * 64 in p}
    assert len(needed) >= 7
    shutil.copytree(folder, folder.with_name("before"))

    def again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(folder.with_name("before"), folder)

    whole = removing(folder)
    assert whole.returncode == 0, whole.stderr
    wanted, effects = end_state(folder), int(whole.stdout)
    for kill in kills(effects):
        again()
        assert removing(folder, kill).returncode == -signal.SIGKILL
        assert {uri: Path(uri.removeprefix("file://")).read_bytes() for uri in needed} == needed
        resumed = removing(folder)
        assert resumed.returncode == 0, resumed.stderr
        assert end_state(folder) == wanted, f"killed after effect {kill} of {effects}"


@pytest.mark.faults
def test_killed_in_the_middle_it_is_finished_by_the_next(tmp_path: Path) -> None:
    cut_off_at(tmp_path / "home", lambda effects: [effects // 2])


@pytest.mark.faults
def test_killed_anywhere_it_is_finished_by_the_next(tmp_path: Path) -> None:
    cut_off_at(tmp_path / "home", lambda effects: [1, 2, 3, *range(4, effects, 7), effects - 1])
