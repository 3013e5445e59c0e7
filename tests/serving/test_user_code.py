"""User code: packed the same way every time, loaded under its content's hash, free of clashes."""

from __future__ import annotations

import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from contracts.errors import ConfigError
from serving.user_code import UserCode, pack, plain_name, unpack

MINE = """
import helper
from parts import deep
import parts.deep as same

def late():
    from lazy import Z
    return helper.X, deep.Y, same.Y, Z
"""


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_packing_twice_gives_the_same_bytes_whatever_the_files_dates(tmp_path: Path) -> None:
    one = files(tmp_path / "one", mine="import helper\n", helper="X = 1\n")
    two = files(tmp_path / "two", helper="X = 1\n", mine="import helper\n")
    assert pack(one, ["mine"], ["helper.py"]) == pack(two, ["mine"], ["helper.py"])


def test_a_module_imports_files_packed_beside_it_early_and_late(tmp_path: Path) -> None:
    folder = files(
        tmp_path,
        mine=MINE,
        helper="X = 1",
        parts__deep="Y = 2",
        lazy="Z = 3",
    )
    code = unpack(pack(folder, ["mine"], ["helper.py", "parts/deep.py", "lazy.py"]))
    for path in folder.rglob("*.py"):
        path.unlink()
    assert code.resolve("mine:late")() == (1, 2, 2, 3)
    assert "mine" not in sys.modules
    assert "helper" not in sys.modules


def test_two_versions_of_one_module_live_side_by_side() -> None:
    old, new = (
        UserCode({"model.py": b"def answer():\n    return 'old'"}),
        UserCode({"model.py": b"def answer():\n    return 'new'"}),
    )
    assert (old.resolve("model:answer")(), new.resolve("model:answer")()) == ("old", "new")
    assert old.load("model").__name__ != new.load("model").__name__
    assert plain_name(old.load("model").__name__) == "model"


def test_what_is_neither_beside_the_file_nor_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        pack(tmp_path, ["no_such_module_anywhere", "json"], ["absent.py", "../outside.py"])
    assert [f.where for f in error.value.findings] == [
        "module no_such_module_anywhere",
        "code: absent.py",
        "code: ../outside.py",
    ]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module_anywhere", "there is no module no_such_module_anywhere"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("", "mine has no f"),
    ],
)
def test_code_that_does_not_load_is_a_config_error_that_says_why(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        UserCode({"mine.py": source.encode()}).resolve("mine:f")


def test_a_zip_with_other_paths_or_sizes_is_refused() -> None:
    for name, data in [("../evil.py", b""), ("data.bin", b""), ("big.py", b"#" * (17 * 1024 * 1024))]:
        buffer = BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, data)
        with pytest.raises(ConfigError, match="more than Python files"):
            unpack(buffer.getvalue())
    with pytest.raises(ConfigError, match="damaged"):
        unpack(b"no zip")


def test_the_commit_travels_with_the_files_but_is_not_part_of_their_hash(tmp_path: Path) -> None:
    folder = files(tmp_path, mine="X = 1")
    with_commit, without = unpack(pack(folder, ["mine"], commit="abc")), unpack(pack(folder, ["mine"]))
    assert with_commit.commit == "abc"
    assert with_commit.sha256 == without.sha256 != ""
