"""Parameters: what a workflow is given, what a template takes, what a step leaves.

Called by `manifest`, `schedule` and `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.local.supported import Found

LABEL = "workflows.argoproj.io/configmap-type"
"""Argo reads parameters only from ConfigMaps whose label of this name says ``Parameter``."""


class Unsupplied(ValueError):  # noqa: N818  named for what it tells
    """A template's input got no value."""


def arguments(
    spec: Mapping[str, Any], given: Mapping[str, str], config_maps: Mapping[str, Mapping[str, Any]], found: Found
) -> dict[str, str]:
    """Return the workflow's parameters: what was given, else the value, else the ConfigMap's key."""
    declared = {p.get("name", ""): p for p in (spec.get("arguments") or {}).get("parameters") or ()}
    found.refused += [
        (name, f"is no parameter of this workflow; it has {', '.join(declared) or 'none'}")
        for name in given
        if name not in declared
    ]
    values = {}
    for name, parameter in declared.items():
        path = f"spec.arguments.parameters[{name}]"
        if name in given:
            value: str | None = given[name]
        elif "value" in parameter:
            value = text_of(parameter["value"])
        else:
            value = _from_config_map(
                (parameter.get("valueFrom") or {}).get("configMapKeyRef"), config_maps, path, found
            )
        if value is None:
            continue
        if parameter.get("enum") and value not in [text_of(choice) for choice in parameter["enum"]]:
            found.refused.append((path, f"{value!r} is none of {', '.join(map(str, parameter['enum']))}"))
        values[name] = value
    return values


def _from_config_map(
    reference: Mapping[str, Any] | None, config_maps: Mapping[str, Mapping[str, Any]], path: str, found: Found
) -> str | None:
    if reference is None:
        found.refused.append((path, "has no value and none was given"))
        return None
    manifest = config_maps.get(reference["name"])
    if manifest is None:
        found.refused.append((path, f"there is no ConfigMap {reference['name']!r}"))
    elif (manifest["metadata"].get("labels") or {}).get(LABEL) != "Parameter":
        found.refused.append((path, f"ConfigMap {reference['name']!r} needs the label {LABEL}: Parameter"))
    elif reference["key"] not in (manifest.get("data") or {}):
        found.refused.append((path, f"ConfigMap {reference['name']!r} has no key {reference['key']!r}"))
    else:
        return str(manifest["data"][reference["key"]])
    return None


def inputs(
    declared: Sequence[Mapping[str, Any]], given: Mapping[str, str], config_maps: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return a template's inputs: the argument, else the value, else the default.

    Raises
    ------
    Unsupplied
        With Argo's message.
    """
    values = {}
    for parameter in declared:
        name = parameter["name"]
        reference = (parameter.get("valueFrom") or {}).get("configMapKeyRef")
        if name in given:
            values[name] = given[name]
        elif (own := parameter.get("value", parameter.get("default"))) is not None:
            values[name] = text_of(own)
        elif reference and reference["key"] in config_maps.get(reference["name"], {}):
            values[name] = config_maps[reference["name"]][reference["key"]]
        else:
            raise Unsupplied(f"inputs.parameters.{name} was not supplied")
    return values


def outputs(declared: Sequence[Mapping[str, Any]], path_of: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """Read a step's output files, one newline at the end dropped; return the values and the paths that were missing."""
    values, missing = {}, []
    for parameter in declared:
        name, source = parameter["name"], parameter["valueFrom"]
        try:
            values[name] = path_of[name].read_text(encoding="utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError):
            if "default" in source:
                values[name] = text_of(source["default"])
            else:
                missing.append(str(source["path"]))
    return values, missing


def text_of(value: Any) -> str:
    """Write a YAML scalar as Argo's parameters hold it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
