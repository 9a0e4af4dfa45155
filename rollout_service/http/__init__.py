"""The rollout server's HTTP API: its routes, what may come in, and its metrics."""
