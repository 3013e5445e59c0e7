"""Whether a version answers where callers ask.  Called by the targets, after a release came up by its own account."""

from __future__ import annotations

import time

import httpx

from steps.rollout.target import NotHealthy

_SECONDS = 15.0


def hear(url: str, version: int) -> None:
    """Ask at the front door, on a new connection each time, until the version answers there.

    Raises
    ------
    NotHealthy
        It does not.
    """
    deadline, heard = time.monotonic() + _SECONDS, "nothing"
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{url}/v1/model", timeout=5, trust_env=False)
            heard = f"{answer.status_code} {answer.text[:100]}"
            if answer.status_code == 200 and _version(answer) == version:
                return
        except httpx.HTTPError as error:
            heard = type(error).__name__
        time.sleep(0.05)
    raise NotHealthy(f"version {version} does not answer at {url}", [f"it heard: {heard}"])


def _version(answer: httpx.Response) -> object:
    """Return the version that an answer names; None where it is not a server's, but a proxy's page for one."""
    try:
        said = answer.json()
    except ValueError:
        return None
    return said.get("version") if isinstance(said, dict) else None
