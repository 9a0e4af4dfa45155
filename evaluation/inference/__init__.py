"""Asks rollout servers for the scene graphs of a dataset's images."""
