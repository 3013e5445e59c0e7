"""The pipeline file: one frozen model of everything that a user says about one pipeline."""

from contracts.pipeline.file import Pipeline, json_schema
from contracts.pipeline.reading import load_pipeline, parse_pipeline

__all__ = ["Pipeline", "json_schema", "load_pipeline", "parse_pipeline"]
