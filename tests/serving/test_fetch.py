"""What a pod fetches before its server starts is what its hashes say, or the pod does not start."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import ConfigError, DataError, NetworkError
from serving.fetch import fetch, main
from serving.model import PackagedModel
from serving.model_keys import trusted
from serving.signature import check
from tests.model_packages import TRUSTED, package, signed

URI = "s3://models/r1/package"


def stored(s3: Any, tmp_path: Path) -> str:
    """Store a package and return the hash of its manifest."""
    folder = signed(package(tmp_path / "package"), "tiny@r1")
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), "models", f"r1/package/{file.relative_to(folder).as_posix()}")
    return hashlib.sha256((folder / "package.json").read_bytes()).hexdigest()


def test_a_package_is_fetched_whole_and_loads(s3: Any, tmp_path: Path) -> None:
    sha256 = stored(s3, tmp_path)
    assert main([URI, str(tmp_path / "model"), f"--sha256={sha256}"]) == 0
    assert PackagedModel.load(tmp_path / "model").manifest.pipeline == "tiny"
    assert check(tmp_path / "model", "tiny@r1", trusted(TRUSTED)), "the signature too"


@pytest.mark.parametrize("name", ["package.json", "estimator.txt"])
def test_one_flipped_byte_is_refused(s3: Any, tmp_path: Path, name: str) -> None:
    sha256, key = stored(s3, tmp_path), f"r1/package/{name}"
    content = bytearray(s3.get_object(Bucket="models", Key=key)["Body"].read())
    content[len(content) // 2] ^= 1
    s3.put_object(Bucket="models", Key=key, Body=bytes(content))

    with pytest.raises(DataError, match=f"{name} is not what its hash says"):
        fetch(URI, tmp_path / "model", sha256)
    assert not (tmp_path / "model").exists(), "nothing of it is left to load"


def test_a_package_without_a_signature_is_refused(s3: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sha256 = stored(s3, tmp_path)
    s3.delete_object(Bucket="models", Key="r1/package/model.sig")

    assert main([URI, str(tmp_path / "model"), f"--sha256={sha256}"]) == DataError.row.exit_code
    assert caplog.messages == [f"{URI} is not signed: it has no model.sig"]
    assert not (tmp_path / "model").exists()


def test_a_package_that_is_not_there_is_a_config_error(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="S3 answered 404 NoSuchKey"):
        fetch(URI, tmp_path / "model", "0" * 64)


def test_a_store_that_does_not_answer_is_a_network_error(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient
    from botocore.exceptions import EndpointConnectionError

    def refuse(*_: Any, **__: Any) -> None:
        raise EndpointConnectionError(endpoint_url="http://nowhere")

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    with pytest.raises(NetworkError, match="did not answer"):
        fetch(URI, tmp_path / "model", "0" * 64)
