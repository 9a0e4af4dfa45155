"""Versions that a server has files of its own of: sent to it, or made by deltas."""
