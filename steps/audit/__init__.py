"""Heads of the ledger, signed and held against it, and what happened as statements that others read."""
