"""The `retrain` command."""
