"""What the commands that run on this machine show: a run, its servers, an inference."""
