"""Every field of a pipeline file made wrong in turn: the mistake is named with line, key and remedy, whatever it is.

What is tried for a field follows from the JSON schema of the file, so a new field is tried as soon as it is there.
"""

from __future__ import annotations

import copy
import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from contracts.errors import ConfigError, Finding
from contracts.pipeline import json_schema, parse_pipeline
from tests.badinput.full_pipeline import FULL, VARIANTS

Key = tuple[str | int, ...]
SCHEMA = json_schema()
STRANGER = "strnger"


def parts(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield everything that stands in a file, with its key."""
    yield key, value
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from parts(inner, (*key, name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from parts(inner, (*key, position))


def resolved(spec: Any) -> list[Any]:
    """Return the ways in which a part may be written, references followed."""
    if "$ref" in spec:
        return resolved(SCHEMA["$defs"][spec["$ref"].rsplit("/", 1)[-1]])
    if "anyOf" in spec:
        return [way for each in spec["anyOf"] for way in resolved(each)]
    return [spec]


def ways(key: Key) -> list[Any]:
    """Return the schemas of what stands under a key."""
    found = [SCHEMA]
    for part in key:
        inner: list[Any] = []
        for way in found:
            if isinstance(part, int):
                inner += resolved(way["items"]) if "items" in way else []
            elif part in way.get("properties", {}):
                inner += resolved(way["properties"][part])
            elif isinstance(way.get("additionalProperties"), dict):
                inner += resolved(way["additionalProperties"])
            elif way.get("additionalProperties") is True:
                inner.append({})
        found = inner
    return found


def wrong_values(key: Key) -> Iterator[tuple[str, Any]]:
    """Yield values that cannot stand under a key, by its schema."""
    specs = ways(key)
    if not specs or any(not spec.get("type") and "enum" not in spec and "const" not in spec for spec in specs):
        return  # anything goes here: parameters of an estimator
    types = {spec.get("type") for spec in specs}
    if not types & {"array"}:
        yield "a list", [[]]
    if not types & {"object"}:
        yield "a mapping", {STRANGER: 1}
    if types <= {"object", "array", "null", "boolean"}:
        yield "a text", "some text"
    if types <= {"integer", "number", "null"}:
        yield "a text", "many"
        yield "not a number", float("nan")
    if types & {"object"} and not types & {"null"} and not types & {"string", "integer", "number", "boolean"}:
        yield "nothing", None
    for spec in specs if len(types - {"null"}) == 1 else ():
        yield from beyond(spec)


def beyond(spec: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield values just outside of a schema's bounds."""
    for bound, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
        if bound in spec:
            yield f"{bound} {spec[bound]}", spec[bound] + step
    if "minLength" in spec or not re.search(spec.get("pattern", ""), ""):
        yield "an empty text", ""
    if "minItems" in spec:
        yield "an empty list", []
    if "minProperties" in spec:
        yield "an empty mapping", {}
    if "enum" in spec or "const" in spec:
        yield "another word", "no such choice"
    if spec.get("type") == "integer":
        yield "a fraction", 1.5


def cases() -> Iterator[tuple[str, Key, dict[str, Any]]]:
    """Yield name, key and content of each wrong file."""
    for title, right in VARIANTS.items():
        for key, value in parts(right):
            if title != "full" and not (key and right[str(key[0])] is not FULL[str(key[0])]):
                continue
            name = f"{title} " + ".".join(map(str, key))
            for what, wrong in wrong_values(key) if key else ():
                yield f"{name}: {what}", key, changed(right, key, wrong)
            specs = ways(key)
            if isinstance(value, dict) and any("properties" in spec for spec in specs):
                yield f"{name}: an unknown key", (*key, STRANGER), changed(right, (*key, STRANGER), 1)
                required = {n for spec in specs for n in spec.get("required", ())}
                if any("Rule" in str(spec.get("title")) for spec in specs):
                    continue
                for gone in sorted(required & value.keys()):
                    yield f"{name}: without {gone}", (*key, gone), changed(right, (*key, gone), ...)


def changed(right: Mapping[str, Any], key: Key, value: Any) -> dict[str, Any]:
    """Return a copy in which one key holds another value; ``...`` removes it."""
    copied: Any = copy.deepcopy(dict(right))
    at = copied
    for part in key[:-1]:
        at = at[part]
    if value is ...:
        del at[key[-1]]
    else:
        at[key[-1]] = value
    return copied  # type: ignore[no-any-return]  # a mapping, like what was copied


def findings_of(content: Any) -> tuple[str, list[Finding]]:
    text = yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False)
    try:
        parse_pipeline(text, "file.yaml")
    except ConfigError as error:
        return text, list(error.findings)
    return text, []


def line_of(text: str, key: Key) -> int:
    """Return the line of the deepest part of a key that stands in the text."""
    node: Any = yaml.compose(text, Loader=yaml.CSafeLoader)
    line = 1
    for part in key:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == part]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def written(key: Key) -> str:
    return ".".join(f"[{part}]" if isinstance(part, int) else part for part in key).replace(".[", "[")


def test_the_right_files_are_right_and_name_every_field() -> None:
    for right in VARIANTS.values():
        assert parse_pipeline(yaml.safe_dump(right), "file.yaml")
    known = {(name, field) for name, spec in SCHEMA["$defs"].items() for field in spec.get("properties", ())}
    tried = {
        (spec.get("title"), part)
        for right in VARIANTS.values()
        for key, value in parts(right)
        if isinstance(value, dict)
        for spec in ways(key)
        for part in value
        if part in spec.get("properties", ())
    }
    assert {
        (n, f) for n, f in known if not n.startswith("Rule_") and (SCHEMA["$defs"][n]["title"], f) not in tried
    } == set()


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.faults)])
def test_a_field_made_wrong_is_named_with_its_line_its_key_and_a_remedy(every: int) -> None:
    unclear: list[str] = []
    wrong = list(cases())
    seed = int(os.environ.get("FIELD_SEED", "") or time.time())
    print(f"FIELD_SEED={seed} takes the same sample again")  # pytest shows it when the test fails
    for name, key, content in random.Random(seed).sample(wrong, len(wrong) // every):
        text, found = findings_of(content)
        where, what = f"file.yaml:{line_of(text, key)}", written(key)
        named = [f for f in found if f.where == where and f.what.split(": ")[0].startswith(what)]
        if not named or not all(f.remedy for f in found) or len(found) > 2:
            unclear.append(f"{name}: wanted {where} {what}, got {'; '.join(map(str, found))}")
    assert unclear == []
    assert len(wrong) > 800


def test_sections_that_can_be_read_are_checked_against_each_other_whatever_else_is_wrong() -> None:
    content = changed(FULL, ("release", "strategy"), "slow")
    content = changed(content, ("target", "column"), "bougt")
    content = changed(content, ("schedule", "timezone"), "Europe/Berln")
    content = changed(content, ("training", "candidates", 0, "estimator"), "lightgmb")
    content = changed(content, ("gates", "default", "validation", "thresholds", 0, "min"), "high")
    content = changed(content, ("split", "key"), ["idd"])

    keys = {finding.what.split(": ")[0] for finding in findings_of(content)[1]}

    assert keys == {
        "release.strategy", "target.column", "schedule.timezone", "training.candidates[0].estimator",
        "gates.default.validation.thresholds[0].min", "split.key[0]",
    }  # fmt: skip
