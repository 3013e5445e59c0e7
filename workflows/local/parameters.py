"""Parameters: what a workflow is given, what a template is given and takes, what a step leaves.

Called by `manifest`, `schedule`, `graph` and `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workflows.local.supported import Found

LABEL = "workflows.argoproj.io/configmap-type"  # of ConfigMaps whose keys may be parameters; says ``Parameter``
ConfigMaps = Mapping[str, Mapping[str, str]]


class Unsupplied(ValueError):  # noqa: N818  named for what it tells
    """A template's input got no value; the message is Argo's."""


def arguments(
    spec: Mapping[str, Any], given: Mapping[str, str], objects: Mapping[str, Mapping[str, Any]], found: Found
) -> dict[str, str]:
    """Return the workflow's parameters: what was given, else the value, else the key of the ConfigMap object."""
    declared = {p.get("name", ""): p for p in (spec.get("arguments") or {}).get("parameters") or ()}
    for name in given.keys() - declared.keys():
        found.refuse(name, f"is no parameter of this workflow; it has {', '.join(declared) or 'none'}")
    values = {}
    for name, parameter in declared.items():
        path = f"spec.arguments.parameters[{name}]"
        reference = (parameter.get("valueFrom") or {}).get("configMapKeyRef")
        if name in given or "value" in parameter:
            values[name] = given[name] if name in given else text_of(parameter["value"])
        elif reference is None:
            found.refuse(path, "has no value and none was given")
        elif (config_map := objects.get(reference["name"])) is None:
            found.refuse(path, f"there is no ConfigMap {reference['name']!r}")
        elif (config_map["metadata"].get("labels") or {}).get(LABEL) != "Parameter":
            found.refuse(path, f"ConfigMap {reference['name']!r} needs the label {LABEL}: Parameter")
        elif reference["key"] not in (config_map.get("data") or {}):
            found.refuse(path, f"ConfigMap {reference['name']!r} has no key {reference['key']!r}")
        else:
            values[name] = str(config_map["data"][reference["key"]])
        choices = [text_of(choice) for choice in parameter.get("enum") or ()]
        if choices and values.get(name, choices[0]) not in choices:
            found.refuse(path, f"{values[name]!r} is none of {', '.join(choices)}")
    return values


def given(block: Mapping[str, Any], config_maps: ConfigMaps) -> dict[str, str]:
    """Return the arguments that a task or step hands on."""
    values = {parameter["name"]: _own(parameter, config_maps, "value") for parameter in block.get("parameters") or ()}
    return {name: value for name, value in values.items() if value is not None}


def inputs(declared: Sequence[Mapping[str, Any]], given: Mapping[str, str], config_maps: ConfigMaps) -> dict[str, str]:
    """Return a template's inputs: the argument, else the value, else the default; raises `Unsupplied`."""
    values = {}
    for parameter in declared:
        name = parameter["name"]
        value = given.get(name, _own(parameter, config_maps, "value", "default"))
        if value is None:
            raise Unsupplied(f"inputs.parameters.{name} was not supplied")
        values[name] = value
    return values


def _own(parameter: Mapping[str, Any], config_maps: ConfigMaps, *keys: str) -> str | None:
    source = parameter.get("valueFrom") or {}
    reference = source.get("configMapKeyRef") or {"name": "", "key": ""}
    found = config_maps.get(reference["name"], {}).get(reference["key"], source.get("default"))
    value = next((parameter[key] for key in keys if parameter.get(key) is not None), found)
    return None if value is None else text_of(value)


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
