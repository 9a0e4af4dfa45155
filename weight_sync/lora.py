"""`lora`: as `http`, for an adapter alone."""

from weight_sync.http import HttpTransport


class LoraTransport(HttpTransport):
    """Tensors by PEFT's names, such as `base_model.model.….q_proj.lora_A.weight`."""

    name = "lora"
