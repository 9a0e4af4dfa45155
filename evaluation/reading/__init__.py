"""Predictions and references, from files to graphs; what is wrong in them is counted."""
