"""Weights out, to every server."""
