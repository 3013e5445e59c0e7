"""Commands that a message names, written so that they work when pasted: at the desk, or on a cluster."""

from __future__ import annotations


def where(namespace: str, context: str = "") -> str:
    """Return the options that name a cluster's namespace, with a space at their end; empty at the desk."""
    return "".join(f"{option} {value} " for option, value in (("-n", namespace), ("--context", context)) if value)


def look(run: str, options: str) -> str:
    """Return the command that shows what a run asks a person; `options` are those of `where`."""
    return f"retrain review {options}{run}"


def decide(run: str, options: str) -> str:
    """Return the command that answers it."""
    return f"retrain approve {options}{run} --reason ... (or reject)"


def release(version: int, options: str) -> str:
    """Return the command that releases a version, or ends a release of it that was cut off."""
    return f"retrain submit FILE {options}--entrypoint release --version {version}"
