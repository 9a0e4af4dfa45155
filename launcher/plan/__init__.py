"""How to split GPUs between trainer and rollout servers: a simulation of the loop, and its rates."""
