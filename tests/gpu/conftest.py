"""The fixtures of `tests/e2e`: the same servers and models, on a GPU where vLLM finds one."""

from tests.e2e.conftest import rollout_server, tiny_model

__all__ = ["rollout_server", "tiny_model"]
