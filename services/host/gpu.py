"""Memory of a GPU."""

GIB = 1024**3
CONTEXT_GIB = 1.5
"""What CUDA, NCCL and the gaps of PyTorch's allocator take beside its tensors."""
