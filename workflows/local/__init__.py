"""Runs a compiled manifest on one machine, without a cluster."""
