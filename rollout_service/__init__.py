"""Samples groups of completions from the current policy; takes weight updates."""
