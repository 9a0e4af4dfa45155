"""The end-to-end tests of sampling, as they are, with vLLM on a GPU: its kernels, seeds, caches.

They come before those of weight transports, which rely on what these look at. `TOLERANCE` of
`tests/e2e/oracle.py` is wider where there is a GPU.
"""

import pytest
import torch

from tests.e2e.test_chat_vllm import *  # noqa: F403
from tests.e2e.test_head_vllm import *  # noqa: F403
from tests.e2e.test_rollout_vllm import *  # noqa: F403
from tests.e2e.test_sampling_vllm import *  # noqa: F403

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
