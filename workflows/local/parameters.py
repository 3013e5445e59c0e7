"""Parameters: what a workflow is given, what a template is given and takes, what a step leaves.

Called by `manifest`, `schedule`, `graph` and `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.local.supported import Found

LABEL = "workflows.argoproj.io/configmap-type"
"""Argo reads parameters only from ConfigMaps whose label of this name says ``Parameter``."""
ConfigMaps = Mapping[str, Mapping[str, str]]


class Unsupplied(ValueError):  # noqa: N818  named for what it tells
    """A template's input got no value."""


def arguments(
    spec: Mapping[str, Any], given: Mapping[str, str], config_maps: Mapping[str, Mapping[str, Any]], found: Found
) -> dict[str, str]:
    """Return the workflow's parameters: what was given, else the value, else the ConfigMap's key."""
    declared = {p.get("name", ""): p for p in (spec.get("arguments") or {}).get("parameters") or ()}
    for name in given.keys() - declared.keys():
        found.refuse(name, f"is no parameter of this workflow; it has {', '.join(declared) or 'none'}")
    values = {}
    for name, parameter in declared.items():
        path = f"spec.arguments.parameters[{name}]"
        reference = (parameter.get("valueFrom") or {}).get("configMapKeyRef") or {}
        if name in given:
            value = given[name]
        elif "value" in parameter:
            value = text_of(parameter["value"])
        elif problem := _problem(reference, config_maps):
            found.refuse(path, problem)
            continue
        else:
            value = str(config_maps[reference["name"]]["data"][reference["key"]])
        if parameter.get("enum") and value not in [text_of(choice) for choice in parameter["enum"]]:
            found.refuse(path, f"{value!r} is none of {', '.join(map(str, parameter['enum']))}")
        values[name] = value
    return values


def _problem(reference: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, Any]]) -> str:
    if not reference:
        return "has no value and none was given"
    manifest = config_maps.get(reference["name"])
    if manifest is None:
        return f"there is no ConfigMap {reference['name']!r}"
    if (manifest["metadata"].get("labels") or {}).get(LABEL) != "Parameter":
        return f"ConfigMap {reference['name']!r} needs the label {LABEL}: Parameter"
    missing = reference["key"] not in (manifest.get("data") or {})
    return f"ConfigMap {reference['name']!r} has no key {reference['key']!r}" if missing else ""


def given(block: Mapping[str, Any], config_maps: ConfigMaps) -> dict[str, str]:
    """Return the arguments that a task or step hands on."""
    values = {parameter["name"]: _own(parameter, config_maps, "value") for parameter in block.get("parameters") or ()}
    return {name: value for name, value in values.items() if value is not None}


def inputs(declared: Sequence[Mapping[str, Any]], given: Mapping[str, str], config_maps: ConfigMaps) -> dict[str, str]:
    """Return a template's inputs: the argument, else the value, else the default.

    Raises
    ------
    Unsupplied
        With Argo's message.
    """
    values = {}
    for parameter in declared:
        name = parameter["name"]
        value = given.get(name, _own(parameter, config_maps, "value", "default"))
        if value is None:
            raise Unsupplied(f"inputs.parameters.{name} was not supplied")
        values[name] = value
    return values


def _own(parameter: Mapping[str, Any], config_maps: ConfigMaps, *keys: str) -> str | None:
    for key in keys:
        if parameter.get(key) is not None:
            return text_of(parameter[key])
    source = parameter.get("valueFrom") or {}
    reference = source.get("configMapKeyRef") or {"name": "", "key": ""}
    found = config_maps.get(reference["name"], {}).get(reference["key"], source.get("default"))
    return None if found is None else text_of(found)


def outputs(declared: Sequence[Mapping[str, Any]], path_of: Mapping[str, Path]) -> tuple[dict[str, str], list[str]]:
    """Read a step's output files, one newline at the end dropped; return the values and the paths that were missing."""
    values, missing = {}, []
    for parameter in declared:
        name, source = parameter["name"], parameter["valueFrom"]
        try:
            values[name] = path_of[name].read_bytes().decode().removesuffix("\n")
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
