"""How to split GPUs between trainer and rollout servers: the loop simulated, and its rates."""
