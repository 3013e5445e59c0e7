"""Measure a model, and what serves beside it, for the gates.  Called by `evaluate` and `promote`."""
