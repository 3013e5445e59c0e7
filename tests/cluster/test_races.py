"""Two releases at once, on a cluster, with the platform's ledger: one wins, the other says why it did not.

No mutex of Argo's keeps them apart: the entry point `release` takes none.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
from pydantic import SecretStr

from contracts.names import ALIAS_PRODUCTION
from contracts.outcomes import Outcome, State
from contracts.settings import variable
from contracts.stages import Deploy
from steps.deploy import deploy
from steps.world import World
from tests.cluster.conftest import Cluster
from tests.cluster.test_rollout import Place, prepared

NAMESPACE = os.environ.get("RACE_NAMESPACE", "race-test")
ROUNDS = 20


@pytest.fixture(scope="module")
def place(platform: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    secret = platform.get("secret", "retrain-deploy-secrets")["data"]
    ledger = base64.b64decode(secret[variable("ledger")]).decode()
    with prepared(platform, NAMESPACE, tmp_path_factory.mktemp("race"), ledger=SecretStr(ledger)) as made:
        name = f"race-{os.urandom(3).hex()}"
        made.base = replace(made.base, pipeline=made.base.pipeline.model_copy(update={"name": name}))
        yield made


def both(worlds: list[World], approved: list[Deploy.Inputs]) -> list[Deploy.Outputs]:
    """Release two versions, begun at the same moment."""
    start = Barrier(2)

    def one(world: World, inputs: Deploy.Inputs) -> Deploy.Outputs:
        start.wait()
        return deploy(inputs, world=world)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, worlds, approved))


def test_of_two_releases_at_once_one_serves_and_the_other_says_why_it_does_not(place: Place) -> None:
    model = place.base.pipeline.name
    won = []
    for number in range(ROUNDS):
        worlds = [place.world(), place.world()]
        approved = [place.approve(world) for world in worlds]
        done = both(worlds, approved)

        assert sorted(each.outcome.value for each in done) == [Outcome.PROMOTED.value, Outcome.SUPERSEDED.value], done
        winner = next(k for k in (0, 1) if done[k].outcome is Outcome.PROMOTED)
        serves, loses = approved[winner].version, approved[1 - winner].version
        assert f"version {serves} began to serve after this approval" in done[1 - winner].summary
        assert place.serves() == place.base.registry.alias(ALIAS_PRODUCTION) == serves
        ledger = place.base.ledger
        assert (ledger.state(model, serves), ledger.state(model, loses)) == (State.SERVING, State.SUPERSEDED)
        assert [e.version for e in ledger.entries(model) if e.state is State.SERVING].count(serves) == 1
        won.append(winner)
        print(f"round {number + 1}: version {serves} serves; {done[1 - winner].summary}")

    assert place.base.ledger.verify(model) == []
    print(f"{ROUNDS} of {ROUNDS} with one winner; the first won {won.count(0)} times")
