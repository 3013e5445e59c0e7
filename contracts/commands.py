"""Commands that a message names, written so that they work when pasted: at the desk, or on a cluster."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_HERE = "http://localhost:8080"


def where(namespace: str, context: str = "") -> str:
    """Return the options that name a cluster's namespace, with a space at their end; empty at the desk."""
    return "".join(f"{option} {value} " for option, value in (("-n", namespace), ("--context", context)) if value)


def look(asked: str, options: str) -> str:
    """Return the command that shows what a run or MODEL@VERSION asks a person; `options` are those of `where`."""
    return f"retrain review {options}{asked}"


def decide(asked: str, options: str) -> str:
    """Return the command that answers it."""
    return f"{approve(asked, options)} (or reject)"


def approve(asked: str, options: str) -> str:
    """Return the command that says yes to it, or goes on with the release that followed."""
    return f"retrain approve {options}{asked} --reason ..."


def go_back(model: str, version: int) -> str:
    """Return the command that goes back to a version at the desk, or goes on with the release that followed."""
    return f"retrain rollback {model} --to {version} --reason ..."


def release(version: int, options: str) -> str:
    """Return the command that releases a version, or ends a release of it that was cut off."""
    return f"retrain submit FILE {options}--entrypoint release --version {version}"


def reach(url: str, options: str) -> str:
    """Return how a server in a cluster is asked from outside it; its URL is ``http://NAME.NAMESPACE``."""
    name, namespace = (urlsplit(url).hostname or "").split(".")[:2]
    there = re.sub(r"^-n \S+", f"-n {namespace}", options)
    return f"kubectl port-forward {there}service/{name} 8080:80, and {_HERE} in place of {url}"
