"""What a server is asked, and how long it may take."""

from pathlib import Path
from typing import NoReturn

import pytest

from services.errors import UnavailableError
from services.http.clients.rollout import RolloutClient
from services.schemas.weights import ServerRecord
from tests.shm_versions import ShmRun, tensors_of
from tests.updaters import settings_of
from weight_sync.transports import sender
from weight_sync.transports.sender import CheckedManifest, Peer

SERVER = Path(__file__).parents[2] / "contract" / "golden" / "server_record.json"


@pytest.mark.parametrize(("num_bytes", "seconds"), [(0, 60), (15_000_000_000, 1560)])
async def test_the_time_for_a_version_grows_with_its_bytes(
    tmp_path: Path, num_bytes: int, seconds: float
) -> None:
    asked: list[float] = []

    async def note(client: RolloutClient) -> NoReturn:
        asked.append(client._timeout_s)
        raise UnavailableError("it is not there")

    record = ServerRecord.model_validate_json(SERVER.read_text())
    assert not await Peer(record, settings_of("run", tmp_path)).tell(note, num_bytes=num_bytes)
    assert asked == [seconds]
    assert sender.SERVER_TIMEOUT_S == 60


def test_bytes_of_a_version(shm_run: ShmRun) -> None:
    checked = CheckedManifest.of(shm_run.write(1).manifest)
    assert checked.num_bytes == sum(array.nbytes for array in tensors_of(1).values())
