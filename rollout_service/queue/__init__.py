"""Work from Redis: prompts are claimed and sampled, and rollouts are put back."""
