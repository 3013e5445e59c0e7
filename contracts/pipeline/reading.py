"""Read a pipeline file; say of each mistake on which line it stands, under which key, and what to do."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from contracts.errors import ConfigError, Finding
from contracts.names import API_VERSION
from contracts.pipeline.checks import did_you_mean, mistakes, unknown_estimators
from contracts.pipeline.file import Pipeline, json_schema
from contracts.pipeline.mistakes import KIND, Mistake

Location = tuple[Any, ...]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # which one is known at run time
    """YAML with true and false as its only booleans, as in YAML 1.2: the class `no` and the key `on` are words."""

    yaml_implicit_resolvers = {
        start: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_pipeline(path: Path) -> Pipeline:
    """Read a pipeline file; see `parse_pipeline`."""
    return parse_pipeline(read_pipeline_text(path), str(path))


def read_pipeline_text(path: Path) -> str:
    """Return the text of a pipeline file, unread.

    Raises
    ------
    ConfigError
        When there is no such file, or it is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"no such pipeline file: {path}", remedy="`retrain init --data FILE --target COLUMN` writes one"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder, not a pipeline file", remedy="name the YAML file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {path}: it is not UTF-8 text", remedy="is this the pipeline file?") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None


def parse_pipeline(text: str, where: str = "pipeline file") -> Pipeline:
    """Read a pipeline file's text.

    Raises
    ------
    ConfigError
        With one finding a mistake, each naming line, key and remedy.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        data = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        findings = [Finding(where=f"{where}:{line}", what=str(error.problem), remedy="mend the YAML")]
        raise ConfigError(f"{where} is not YAML", findings=findings) from None
    except (yaml.YAMLError, ValueError) as error:
        findings = [Finding(where=where, what=str(error).splitlines()[0], remedy="mend the YAML")]
        raise ConfigError(f"{where} is not YAML", findings=findings) from None
    if not isinstance(data, dict):
        finding = Finding(where=f"{where}:1", what="it holds no keys", remedy="`retrain init` writes one")
        raise ConfigError(f"{where} is not a pipeline file", findings=[finding])
    if findings := list(_double_keys(node, where)):
        raise ConfigError(f"{where} has mistakes", findings=findings)
    if data.get("apiVersion") != API_VERSION:
        line, version = _line(node, ("apiVersion",)), data.get("apiVersion")
        what = f"apiVersion is {version!r}" if version is not None else "apiVersion is missing"
        finding = Finding(where=f"{where}:{line}", what=what, remedy=f"this retrain reads {API_VERSION!r}")
        raise ConfigError(f"{where} is of another version", findings=[finding])
    try:
        return Pipeline.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where} has mistakes", findings=list(_findings(error, data, node, where))) from None


def _findings(error: ValidationError, data: Any, node: yaml.Node | None, where: str) -> Iterator[Finding]:
    """Turn pydantic's errors into findings: one a mistake, one a key where a union was tried in several ways."""
    alternatives: dict[Location, list[Any]] = {}
    items = error.errors()
    if any(item["loc"] for item in items):  # the checks between sections did not run
        for mistake in _between_sections(data, {str(item["loc"][0]) for item in items if item["loc"]}):
            yield _finding(node, where, mistake.at, mistake.what, mistake.remedy)
    for item in items:
        if _follows(item, items, node):
            continue
        if item["type"] == KIND:
            for mistake in item["ctx"][KIND]:
                yield _finding(node, where, (*_in_file(item["loc"], node), *mistake.at), mistake.what, mistake.remedy)
        elif item["type"] == "missing":
            yield _finding(node, where, (*_in_file(item["loc"][:-1], node), item["loc"][-1]), "is missing", "add it")
        else:
            alternatives.setdefault(_in_file(item["loc"], node), []).append(item)
    for loc, items in alternatives.items():
        yield _finding(node, where, loc, *_what_and_remedy(loc, items))


def _between_sections(data: Mapping[str, Any], wrong: Collection[str]) -> Iterator[Mistake]:
    """Yield the mistakes between those sections that hold none themselves."""
    sections = {name: info.alias or name for name, info in Pipeline.model_fields.items()}
    values = {
        name: _adapter(name).validate_python(data[key])
        for name, key in sections.items()
        if key in data and key not in wrong
    }
    whole = [name for name, key in sections.items() if key not in wrong]  # what is absent has a default, or is wrong
    yield from mistakes(Pipeline.model_construct(**values), whole)
    if "training" not in whole:
        yield from unknown_estimators(_estimators(data))


@cache
def _adapter(section: str) -> TypeAdapter[Any]:
    annotation: Any = Pipeline.model_fields[section].annotation
    return TypeAdapter(annotation)


def _estimators(data: Any) -> list[Any]:
    training = data.get("training")
    candidates = training.get("candidates") if isinstance(training, dict) else None
    if not isinstance(candidates, list):
        return []
    return [each.get("estimator") if isinstance(each, dict) else None for each in candidates]


def _follows(item: Any, items: Sequence[Any], node: yaml.Node | None) -> bool:
    """Whether a mistake is gone once another is mended: a key that is misspelt, a list whose items have mistakes."""
    loc = item["loc"]
    if item["type"] == "missing":
        strangers = (o["loc"] for o in items if o["type"] == "extra_forbidden" and o["loc"][:-1] == loc[:-1])
        return any(
            did_you_mean(str(s[-1]), _keys_beside(_in_file(s, node))) == f"did you mean {loc[-1]!r}?" for s in strangers
        )
    return item["type"] == "too_short" and any(len(o["loc"]) > len(loc) and o["loc"][: len(loc)] == loc for o in items)


def _what_and_remedy(loc: Location, items: list[Any]) -> tuple[str, str]:
    first = items[0]
    if first["type"] == "extra_forbidden":
        remedy = did_you_mean(str(loc[-1]), _keys_beside(loc))
        return "unknown key", remedy or "remove it, or see the JSON schema (`retrain schema file`)"
    if first["type"] == "too_short":
        return f"holds too few items, {first['ctx']['min_length']} at least", "add one"
    says = dict.fromkeys(item["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for item in items)
    what, given = " or ".join(says), first["input"]
    if first["type"] == "value_error":
        return what, "correct it"
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) or given is None else ""
    remedy = (
        did_you_mean(given, str(first.get("ctx", {}).get("expected", "")).split("'")) if isinstance(given, str) else ""
    )
    return f"should be {what}{shown}" if first["msg"].startswith(
        "Input should be "
    ) else f"{what}{shown}", remedy or "correct it"


def _finding(node: yaml.Node | None, where: str, loc: Location, what: str, remedy: str) -> Finding:
    key = ".".join(f"[{part}]" if isinstance(part, int) else str(part) for part in loc).replace(".[", "[")
    return Finding(where=f"{where}:{_line(node, loc)}", what=f"{key or 'the file'}: {what}", remedy=remedy)


def _in_file(loc: Location, node: yaml.Node | None) -> Location:
    """Keep of pydantic's location what stands in the file: it also names the ways it tried, and a rule's `value`."""
    kept = []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            value = next((value for key, value in node.value if key.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            value = node.value[part]
        else:
            value = None
        if value is not None:
            kept.append(part)
            node = value
    return tuple(kept)


def _line(node: yaml.Node | None, loc: Location) -> int:
    """Return the line of the deepest part of `loc` that stands in the file."""
    line = 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            pair = next(((key, value) for key, value in node.value if key.value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _double_keys(node: yaml.Node | None, where: str) -> Iterator[Finding]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                yield Finding(where=f"{where}:{line}", what=f"{key.value}: stands twice", remedy="keep one")
            seen.add(key.value)
            yield from _double_keys(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _double_keys(value, where)


def _keys_beside(loc: Location) -> list[str]:
    """Return the keys that may stand where the last part of `loc` does."""
    definitions = _definitions()
    at: Any = definitions
    for part in loc[:-1]:
        at = _resolve(at, definitions)
        if isinstance(part, int):
            at = at.get("items", {})
        else:
            at = at.get("properties", {}).get(part, at.get("additionalProperties", {}))
    at = _resolve(at, definitions)
    return list(at.get("properties", {})) if isinstance(at, dict) else []


@cache
def _definitions() -> dict[str, Any]:
    return json_schema()


def _resolve(at: Any, definitions: dict[str, Any]) -> Any:
    while isinstance(at, dict):
        if "$ref" in at:
            at = definitions["$defs"][at["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in at:
            at = next((o for o in at["anyOf"] if "$ref" in o or o.get("type") in ("array", "object")), {})
        else:
            break
    return at
