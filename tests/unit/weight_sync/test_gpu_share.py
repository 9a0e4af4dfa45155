import pytest

from rollout_service.vllm.gpu_memory import server_memory
from services.errors import SettingsError
from services.host.gpu import CONTEXT_GIB
from services.settings import Settings
from trainer.policy.gpu import rank_fraction

GIB = 2**30


def settings(share: float) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": "some/model"},
            "data": {"train": "unused"},
            "rollout": {"gpu_memory_utilization": share},
            "weights": {"transport": "ipc"},
        }
    )


def test_a_server_asks_for_less_than_its_share_and_a_rank_leaves_it_free() -> None:
    """What vLLM wants to find free at its start is there beside a rank at its cap."""
    shared, total, weights = settings(0.3), 80 * GIB, 16 * GIB
    found = server_memory(shared, total, weights)
    assert found["kv_cache_memory_bytes"] == 4 * GIB
    wanted = found["gpu_memory_utilization"] * total
    assert wanted == pytest.approx(20 * GIB)
    rank = rank_fraction(shared, total) * total + CONTEXT_GIB * GIB
    assert rank == pytest.approx(56 * GIB)
    own_context_and_driver = 1.5 * GIB
    assert wanted < total - rank - own_context_and_driver


@pytest.mark.parametrize(
    ("share", "weights", "message"),
    [
        (0.2, 16, "gpu_memory_utilization = 0.2 of 80.0 GiB has no room .* 16.0 GiB of weights"),
        (0.5, 0, "some/model has no safetensors"),
    ],
)
def test_a_share_without_room_for_a_cache_is_refused(
    share: float, weights: int, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as error:
        server_memory(settings(share), 80 * GIB, weights * GIB)
    assert "\n" not in error.value.message
