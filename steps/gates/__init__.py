"""The gates: pure functions of metrics and policy.  Called by `evaluate` and `promote`, which do the measuring."""
