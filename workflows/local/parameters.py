"""Parameters: what a workflow is given, what a template is given and takes, what a step leaves.

Called by `manifest`, `schedule`, `graph` and `runner`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows.local.supported import Found

if TYPE_CHECKING:
    from workflows.local.manifest import Program

LABEL = "workflows.argoproj.io/configmap-type"  # of ConfigMaps whose keys may be parameters; says ``Parameter``
ConfigMaps = Mapping[str, Mapping[str, str]]


class Unsupplied(ValueError):  # noqa: N818  named for what it tells
    """A template's input got no value; the message is Argo's."""


def arguments(program: Program, given: Mapping[str, str], found: Found) -> dict[str, str]:
    """Return the workflow's parameters: what was given, else the value, else the key of the ConfigMap object."""
    declared = {p.get("name", ""): p for p in (program.spec.get("arguments") or {}).get("parameters") or ()}
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
        elif problem := missing(parameter, program):
            found.refuse(path, problem)
        else:
            values[name] = program.parameter_maps[reference["name"]][reference["key"]]
        choices = [text_of(choice) for choice in parameter.get("enum") or ()]
        if choices and values.get(name, choices[0]) not in choices:
            found.refuse(path, f"{values[name]!r} is none of {', '.join(choices)}")
    return values


def missing(parameter: Mapping[str, Any], program: Program) -> str:
    """Say why the ConfigMap's key that a parameter is taken from is not there; empty where it is, or none is named."""
    source = parameter.get("valueFrom") or {}
    what, reference, data = program.referred(source)
    if not what or "default" in source or reference.get("optional"):
        return ""
    if data is None:
        return f"there is no {what}"
    if reference["name"] not in program.parameter_maps:
        return f"{what} needs the label {LABEL}: Parameter"
    return "" if reference["key"] in data else f"{what} has no key {reference['key']!r}"


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
