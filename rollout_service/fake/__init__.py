"""An engine without a model, for machines and tests without vLLM."""
