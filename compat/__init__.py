"""Fixes for third-party packages, each for one stated condition."""
