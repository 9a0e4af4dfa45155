"""How a version's bytes get from the trainer to the rollout servers: one file for each way."""
