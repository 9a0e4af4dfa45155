"""The policy's weights on their way from the trainer to the rollout servers, both ends of it."""
