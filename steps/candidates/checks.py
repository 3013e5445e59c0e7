"""Find what is wrong with the candidates of a pipeline file without importing what they name.  Called by `preflight`.

Parameters are compared with those that a library declares, own modules are parsed.  Where neither says enough, nothing
is found, and training tells.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path

from contracts.errors import Finding
from contracts.metrics import Task
from contracts.pipeline import Pipeline
from contracts.pipeline.checks import did_you_mean
from contracts.pipeline.learning import Candidate
from serving.user_code import UserCode, module_name

_BOOSTING = "ensemble/_hist_gradient_boosting/gradient_boosting"
_SCIKIT_LEARN = {
    ("hist_gradient_boosting", True): (_BOOSTING, "HistGradientBoostingClassifier"),
    ("hist_gradient_boosting", False): (_BOOSTING, "HistGradientBoostingRegressor"),
    ("random_forest", True): ("ensemble/_forest", "RandomForestClassifier"),
    ("random_forest", False): ("ensemble/_forest", "RandomForestRegressor"),
    ("linear", True): ("linear_model/_logistic", "LogisticRegression"),
    ("linear", False): ("linear_model/_ridge", "Ridge"),
    ("dummy", True): ("dummy", "DummyClassifier"),
    ("dummy", False): ("dummy", "DummyRegressor"),
}
"""Estimator, and whether it tells classes -> file and class: importing takes seconds, parsing one file does not."""

Scope = dict[str, ast.stmt]
"""The names that a module defines, and by what."""


def candidate_findings(pipeline: Pipeline, code: UserCode) -> Iterator[Finding]:
    """Yield a finding for every parameter that is not known, and every attribute that an own module lacks."""
    scopes: dict[str, Scope | None] = {}
    for path, text in code.files.items():
        try:
            scopes[module_name(path)] = scope_of(ast.parse(text))
        except (SyntaxError, ValueError) as error:
            line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            yield Finding(where=f"{path}{line}", what="is not Python", remedy="mend it")
            scopes[module_name(path)] = None
    own = [u.removeprefix("python:") for u in pipeline.source.uris if u.startswith("python:")]
    own += [c.estimator for c in pipeline.training.candidates if ":" in c.estimator]
    own += pipeline.gates.functions
    for reference in dict.fromkeys(own):
        module, _, attribute = reference.partition(":")
        scope, first = scopes.get(module), attribute.split(".")[0]
        if scope is not None and first and first not in scope:
            remedy = did_you_mean(first, scope) or f"one of {', '.join(scope)}"
            yield Finding(where=reference, what=f"{module} has no {first}", remedy=remedy)
    for number, candidate in enumerate(pipeline.training.candidates):
        known = _known(candidate, pipeline.target.task is not Task.REGRESSION, scopes)
        where = f"training.candidates[{number}]"
        named = [("parameters", name) for name in candidate.parameters]
        named += [("search.space", name) for name in (candidate.search.space if candidate.search else ())]
        for key, name in named:
            remedy = did_you_mean(name, sorted(known or ()))
            # XGBoost tells nobody all that it knows, so there only what looks like another word is wrong
            if known is not None and name not in known and (remedy or candidate.estimator != "xgboost"):
                what = f"{candidate.estimator} knows no such parameter"
                yield Finding(where=f"{where}.{key}.{name}", what=what, remedy=remedy or "mend or remove it")


def scope_of(tree: ast.Module) -> Scope | None:
    """Return what a module defines at its top; None when that cannot be read off."""
    scope: Scope = {}
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        part = waiting.pop(0)
        match part:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                scope[part.name] = part
            case ast.Import() | ast.ImportFrom():
                names = [alias.asname or alias.name.split(".")[0] for alias in part.names]
                if "*" in names:
                    return None
                scope |= dict.fromkeys(names, part)
            case _:
                inside = list(ast.walk(part))
                scope |= {n.id: part for n in inside if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                waiting += [inner for inner in inside if isinstance(inner, _DEFINING)]
    return None if "__getattr__" in scope or _changes_itself(tree) else scope


_DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _changes_itself(tree: ast.Module) -> bool:
    return any(isinstance(n, ast.Name) and n.id in ("globals", "setattr", "exec") for n in ast.walk(tree))


def _known(candidate: Candidate, classes: bool, scopes: dict[str, Scope | None]) -> Collection[str] | None:
    """Return the parameters that an estimator takes; None when that cannot be told."""
    if not candidate.parameters and candidate.search is None:
        return None
    if ":" in candidate.estimator:
        module, _, attribute = candidate.estimator.partition(":")
        return _arguments((scopes.get(module) or {}).get(attribute))
    if candidate.estimator == "lightgbm":
        from steps.candidates.lightgbm import known_parameters

        return known_parameters()
    if candidate.estimator == "xgboost":
        names = _declared("xgboost", "sklearn", "XGBModel")
        return None if names is None else {*names, "num_boost_round"}
    return _declared("sklearn", *_SCIKIT_LEARN[candidate.estimator, classes])


def _declared(package: str, file: str, name: str) -> Collection[str] | None:
    found = importlib.util.find_spec(package)
    places = [Path(place) / f"{file}.py" for place in (found.submodule_search_locations or ())] if found else []
    if not places or not places[0].is_file():
        return None
    tree = ast.parse(places[0].read_bytes())
    declared = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name), None)
    return _arguments(declared, some=True)


def _arguments(part: ast.stmt | None, *, some: bool = False) -> Collection[str] | None:
    """Return what may be passed by name to a function or class; None when that is not all, unless `some` will do."""
    if isinstance(part, ast.ClassDef):
        makers = [n for n in part.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return _arguments(makers[0], some=some) if makers else None
    if not isinstance(part, ast.FunctionDef) or (part.decorator_list and not some):
        return None
    given = part.args
    if given.kwarg is not None and not some:
        return None
    return [a.arg for a in (*given.args, *given.kwonlyargs) if a.arg != "self"]
