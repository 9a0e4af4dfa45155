"""Scores sampled scene-graph text over HTTP with pure functions."""
