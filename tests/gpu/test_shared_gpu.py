"""A server that starts on a GPU of which a rank of the trainer has taken all that it may."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from services.http.clients.rollout import RolloutClient
from services.settings import Settings
from tests.e2e.conftest import ROOT, running_server
from tests.e2e.oracle import picture, request
from trainer.policy.gpu import cap_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SHARE = 0.3
MODEL = ROOT / "assets/toy-start"


@pytest.fixture
def full_rank() -> Iterator[list[torch.Tensor]]:
    """What this process holds at its cap."""
    settings = Settings.model_validate(
        {
            "model": {"path": str(MODEL)},
            "data": {"train": "unused"},
            "rollout": {"gpu_memory_utilization": SHARE},
            "weights": {"transport": "ipc"},
        }
    )
    cap_memory(settings)
    held: list[torch.Tensor] = []
    with suppress(torch.OutOfMemoryError):
        while True:
            held.append(torch.empty(2**28, dtype=torch.uint8, device="cuda"))
    yield held
    held.clear()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


async def test_a_server_starts_and_samples_beside_a_rank_at_its_cap(
    full_rank: list[torch.Tensor], redis_url: str, tmp_path: Path
) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    assert 0.5 < len(full_rank) * 2**28 / total < 1 - SHARE
    with running_server(
        MODEL,
        redis_url,
        tmp_path,
        rollout={"gpu_memory_utilization": SHARE},
        weights={"transport": "ipc"},
    ) as server:
        async with RolloutClient(server.url) as client:
            answer = await client.rollouts(request(picture(1), n=4))
    assert len(answer.completions) == 4
