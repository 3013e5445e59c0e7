"""What is heard at the front door: a version, another one, or something that is no server of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from steps.rollout import front_door
from steps.rollout.front_door import hear
from steps.rollout.target import NotHealthy
from tests.loopback import Handler, serving

OURS = json.dumps({"name": "m", "version": 3}).encode()


@contextmanager
def answering(*bodies: bytes) -> Iterator[str]:
    """Answer 200 with each of the bodies in turn, the last one for ever."""
    left = list(bodies)

    class Page(Handler):
        def do_GET(self) -> None:
            body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Page) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    "body", [b"<html>starting</html>", b"", b"\xff\xfe", b"[3]", b"3", b"null", b"{}", b'{"version": 2}']
)
def test_what_is_not_the_version_is_not_healthy_and_is_told(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_door, "_SECONDS", 0.2)
    with answering(body) as url, pytest.raises(NotHealthy, match="version 3 does not answer") as found:
        hear(url, 3)
    assert found.value.lines[0].startswith("it heard: 200")


@pytest.mark.parametrize("before", [[b"<html>starting</html>"], [b"[]", b"{}", b'{"version": 2}']])
def test_it_asks_on_until_the_version_answers(before: Sequence[bytes]) -> None:
    with answering(*before, OURS) as url:
        hear(url, 3)
