"""Sampling with vLLM, which is imported in this folder alone."""
