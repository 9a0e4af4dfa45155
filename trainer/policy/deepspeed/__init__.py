"""All that is DeepSpeed: its calls, its JSON, and its compiled ops."""
