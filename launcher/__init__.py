"""Starts, watches and stops a run's processes on one machine."""
