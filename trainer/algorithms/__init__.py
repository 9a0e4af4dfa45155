"""Pure tensor functions of reinforcement learning: no IO, no engine."""
