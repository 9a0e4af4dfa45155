"""Versions as deltas: what changed since the version before, and how a server applies it."""
