"""A whole run's numbers for Prometheus: Redis, queues, servers, policy, the trainer's steps."""
