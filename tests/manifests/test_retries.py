"""The retry strategy, played through by the expression language of the local runner."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import BY_NAME, ERROR_CLASSES, MEMORY_GROWTH_CAP
from workflows.local.expr import compile_expression
from workflows.retries import memory, retry_strategy

STRATEGY = retry_strategy()
AGAIN = compile_expression(str(STRATEGY.expression))

Failure = tuple[str, str, str]
"""Exit code, phase, message; as Argo has them."""
BY_CODE = {
    row.name: (str(row.exit_code), "Failed", f"main: Error (exit code {row.exit_code})") for row in ERROR_CLASSES
}
OOM = ("137", "Failed", "main: OOMKilled (exit code 137)")
KILLED = ("137", "Failed", "main: Error (exit code 137)")
DELETED = ("-1", "Error", "pod deleted")
EVICTED = ("-1", "Failed", "The node was low on resource: memory.")
DRAINED = ("143", "Failed", "main: Error (exit code 143)")
SHUT_DOWN = ("-1", "Failed", "Pod was terminated in response to imminent node shutdown.")
TOO_LATE = ("143", "Failed", "Pod was active on the node longer than the specified deadline")
REFUSED = ("-1", "Failed", "Pod was rejected: Node didn't have enough resource: cpu, requested: 500, used: 2000")
LOST = (DELETED, EVICTED, DRAINED, SHUT_DOWN, REFUSED)


def attempts(*failures: Failure) -> int:
    """Return how many attempts run when they fail so, one after the other, and what comes after would succeed."""
    for number, (code, phase, message) in enumerate(failures):
        last = {"exitCode": code, "status": phase, "message": message, "duration": "1"}
        over = number >= int(STRATEGY.limit)  # type: ignore[arg-type]  # an int, as built
        if over or not AGAIN({"retries": str(number), "lastRetry": last}):
            return number + 1
    return len(failures) + 1


@pytest.mark.parametrize("name", ["network", "storage", "infrastructure"])
def test_a_class_alone_is_retried_as_often_as_its_row_says(name: str) -> None:
    assert attempts(*[BY_CODE[name]] * 10) == 1 + BY_NAME[name].retries


@pytest.mark.parametrize("sign", LOST, ids=["deleted", "evicted", "drained", "shut down", "refused"])
def test_a_lost_pod_is_infrastructure(sign: Failure) -> None:
    assert attempts(*[sign] * 10) == 1 + BY_NAME["infrastructure"].retries


@pytest.mark.parametrize("name", ["data", "config", "code"])
def test_what_trying_again_cannot_mend_is_not_retried(name: str) -> None:
    assert attempts(BY_CODE[name]) == 1
    assert attempts(BY_CODE["network"], BY_CODE[name]) == 2


@pytest.mark.parametrize("failure", [KILLED, TOO_LATE, ("1", "Failed", "main: Error (exit code 1)")])
def test_what_is_not_in_the_table_is_not_retried(failure: Failure) -> None:
    assert attempts(failure) == 1


def test_running_out_of_memory_ends_with_the_attempt_that_had_four_times_the_base() -> None:
    assert attempts(OOM, OOM, OOM, OOM) == 3
    assert [memory_of(number) for number in range(3)] == [1024, 2048, 4096]
    assert memory_of(7) == 1024 * MEMORY_GROWTH_CAP


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ((BY_CODE["network"], OOM), 3),
        ((OOM, BY_CODE["network"]), 3),
        ((OOM, OOM, BY_CODE["network"]), 4),
        ((EVICTED, BY_CODE["network"]), 3),
        ((BY_CODE["network"], BY_CODE["network"], EVICTED), 4),
        ((BY_CODE["network"], BY_CODE["network"], OOM), 3),  # this attempt had 4 x already
        ((BY_CODE["storage"], OOM, BY_CODE["network"], BY_CODE["storage"]), 5),
    ],
    ids=["75 oom", "oom 75", "oom oom 75", "evicted 75", "75 75 evicted", "75 75 oom", "74 oom 75 74"],
)
def test_a_mixture_is_not_starved(failures: tuple[Failure, ...], expected: int) -> None:
    assert attempts(*failures) == expected


RETRIED = {name: BY_CODE[name] for name in ("network", "storage", "infrastructure")} | {"resources": OOM}


@given(st.lists(st.sampled_from(sorted(RETRIED)), min_size=1, max_size=10))
def test_in_any_mixture_no_class_is_retried_more_often_than_its_row_says(classes: list[str]) -> None:
    ran = attempts(*(RETRIED[name] for name in classes))

    for name, times in itertools.groupby(sorted(classes[: ran - 1])):
        assert len(list(times)) <= BY_NAME[name].retries


@given(st.lists(st.sampled_from(["network", "storage", "infrastructure"]), min_size=1, max_size=3))
def test_in_any_mixture_the_first_three_failures_are_retried(classes: list[str]) -> None:
    assert attempts(*(RETRIED[name] for name in classes)) == len(classes) + 1


def test_all_retried_classes_wait_alike_since_argo_has_one_backoff() -> None:
    waits = {(r.backoff_seconds, r.backoff_factor, r.backoff_cap_seconds) for r in ERROR_CLASSES if r.retries}

    assert waits == {(2, 2, 60)}
    assert STRATEGY.backoff is not None
    built = STRATEGY.backoff.model_dump(exclude_none=True)
    assert built == {"duration": "2", "factor": 2, "cap": "60"}


def memory_of(number: int) -> int:
    return int(compile_expression(memory("base"))({"base": "1024", "retries": str(number)}))


def test_who_joins_what_others_found_waits_for_nothing_that_they_waited_for() -> None:
    again = compile_expression(str(retry_strategy(passing=False).expression))

    def is_tried(failure: Failure) -> bool:
        code, phase, message = failure
        return bool(again({"retries": "0", "lastRetry": {"exitCode": code, "status": phase, "message": message}}))

    assert [name for name, failure in BY_CODE.items() if is_tried(failure)] == ["resources"]
    assert is_tried(OOM)
    assert all(is_tried(lost) for lost in LOST)
