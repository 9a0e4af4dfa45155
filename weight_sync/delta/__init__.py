"""Versions as deltas: what changed since the version before, and how a server applies it."""

LARGEST_SHARE = 0.5
"""What all deltas since the last whole version may take of its bytes, together: a late server reads
half a version more at the most, and a delta that is nearly a version saves nothing."""
