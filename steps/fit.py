"""Fit one candidate and hand it on by its hash.  The `fit` stage, once for each candidate that is to be fitted."""

from __future__ import annotations

from contracts.errors import ConfigError
from contracts.stages import Fit
from steps.candidates.lightgbm import lightgbm_problem
from steps.training.fitting import fit_candidate, problem_of, put
from steps.training.key import train_key
from steps.training.material import read_material, read_sides
from steps.world import World


def fit(inputs: Fit.Inputs, *, world: World) -> Fit.Outputs:
    """Return where the fitted candidate lies; nowhere where LightGBM is missing, which `train` knows how to go without.

    Raises
    ------
    ConfigError
        When parameters, own code or a library do not fit; the findings name candidate and parameter.
    DataError
        When target or weights can't be learned from.
    """
    candidate = next((c for c in world.pipeline.training.candidates if c.name == inputs.candidate), None)
    if candidate is None:
        raise ConfigError(f"the pipeline file has no candidate {inputs.candidate}", remedy="run again")
    if candidate.estimator == "lightgbm" and (problem := lightgbm_problem()):
        return Fit.Outputs(fit="", summary=f"{candidate.name} is left out: {problem.what}")
    code = world.user_code(inputs.code)
    key = train_key(inputs.dataset_sha256, inputs.split_sha256, code, world)
    material = read_material(inputs, code, world)
    folder = world.scratch / "fit"
    done = fit_candidate(candidate, problem_of(material, world), read_sides(material, world), key, folder, world)
    summary = f"{candidate.name} {world.pipeline.training.metric} {done.value:.4f}"
    return Fit.Outputs(fit=put(done, world), summary=summary)
