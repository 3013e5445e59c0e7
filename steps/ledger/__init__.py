"""The ledger: entries of versions, append-only, each bound to the one before it (docs/ledger.md)."""

from steps.ledger.ledger import RACES, Ledger, LostRace, until_won

__all__ = ["RACES", "Ledger", "LostRace", "until_won"]
