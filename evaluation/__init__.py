"""Held-out inference through the rollout service, scene-graph metrics and reports."""
