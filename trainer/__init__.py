"""SFT and GRPO on DeepSpeed."""
