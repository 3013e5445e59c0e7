"""An id and the version that answered are one thing, whatever the pipeline is called."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.prediction_id import PredictionId

names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True)
odd_names = st.sampled_from(["a-3", "7", f"a-1-{'0' * 32}", "a--1", "a-1-2"])
ids = st.builds(
    PredictionId,
    model=names | odd_names,
    version=st.integers(1, 10**9),
    unique=st.uuids().map(lambda value: value.hex),
    row=st.none() | st.integers(0, 999),
)


@given(ids)
def test_an_id_resolves_to_what_it_was_made_of(made: PredictionId) -> None:
    assert PredictionId.parse(str(made)) == made


HEX = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    "text",
    ["", "production", "12", "adult-income", "d" * 64, f"a-0-{HEX}", f"A-1-{HEX}", f"a-1-{HEX}\n", f"a-1-{HEX}-",
     f"a-1-{HEX.upper()}", f"a-1-{HEX}-01", f"a-\u0661-{HEX}", f"-1-{HEX}"],
)  # fmt: skip
def test_what_is_no_id_is_none(text: str) -> None:
    assert PredictionId.parse(text) is None
