"""What every process shares: wire schemas, queues, clients, settings, errors. No torch, no vllm."""
