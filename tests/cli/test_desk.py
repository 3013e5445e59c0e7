"""The sizes that the desk gives its stages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from contracts.errors import MEMORY_GROWTH_CAP
from contracts.settings import size
from contracts.stages import SIZED
from workflows.cli.desk import desk_environment


@pytest.mark.parametrize("gib", [1, 64])
def test_the_last_attempt_of_a_stage_fits_the_machine_unless_the_stage_declares_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gib: int
) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": gib * 2**18}.__getitem__)

    environment = desk_environment(tmp_path / "home", tmp_path)

    for stage in SIZED:
        base = int(environment[size(stage.name, "memory")])
        assert base >= stage.memory_mib
        assert base == stage.memory_mib or base * MEMORY_GROWTH_CAP == gib * 1024 * 3 // 4
