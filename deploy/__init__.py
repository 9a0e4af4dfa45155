"""What a run is deployed with: containers, Slurm jobs, installation, dashboards, audits."""
