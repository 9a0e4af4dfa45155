"""Checkpoints: written whole, found again, and checked against the run that resumes."""
