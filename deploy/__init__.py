"""Containers, dashboards and Slurm jobs."""
