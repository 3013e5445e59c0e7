"""Reads manifests from YAML, by the loader that is written in C where there is one: a compiled template is long.

Called by `workflows.compile` and the commands.
"""

from __future__ import annotations

from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text, empty ones left out.

    Raises
    ------
    yaml.YAMLError
        It is no YAML.
    """
    return [part for part in yaml.load_all(text, Loader=_LOADER) if part is not None]
