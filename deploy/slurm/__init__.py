"""A run as a Slurm job: rendered, submitted, looked after."""
