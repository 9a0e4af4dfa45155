"""A rollout server that stops for ever in the middle of a weight update, and says so in a file.

With the edge `FAILS` it fails to load that version instead, as often as a commit tries.

Called as `python -m tests.integration.stalling_server CONFIG MARKER EDGE VERSION`.
"""

import asyncio
import sys
from pathlib import Path

from rollout_service.fake.engine import FakeEngine
from rollout_service.http.app import RolloutProcess
from services.errors import EngineError
from services.http import app as service
from services.schemas.weights import StageRequest, WeightManifest
from services.settings import load_settings
from weight_sync.engine import Staged
from weight_sync.transports import shm
from weight_sync.transports.files import StagedFile

FAILS = "fails"
EDGES = ("before stage", "staged", "in the load", "before resume")


class Stall:
    """Stops at one edge of one version's update."""

    def __init__(self, marker: Path, edge: str, policy_version: int) -> None:
        self._marker = marker
        self._edge = edge
        self._policy_version = policy_version
        self._failures = 2 if edge == FAILS else 0

    def fail(self, policy_version: int) -> None:
        if self._failures and policy_version == self._policy_version:
            self._failures -= 1
            raise EngineError("half of the tensors are on the meta device")

    async def at(self, edge: str, policy_version: int) -> None:
        if (edge, policy_version) == (self._edge, self._policy_version):
            self._marker.write_text(edge)
            await asyncio.Event().wait()


class StallingEngine(FakeEngine):
    """Stops while it is paused."""

    def __init__(self, stall: Stall) -> None:
        super().__init__(tokens_per_s=20_000, max_model_len=4096)
        self._stall = stall

    async def load_weights(self, weights: Staged, manifest: WeightManifest) -> None:
        await self._stall.at("in the load", manifest.policy_version)
        self._stall.fail(manifest.policy_version)
        await super().load_weights(weights, manifest)

    async def resume(self) -> None:
        await self._stall.at("before resume", self._version)
        await super().resume()


def main(config: str, marker: str, edge: str, policy_version: str) -> None:
    settings = load_settings(Path(config))
    stall = Stall(Path(marker), edge, int(policy_version))

    class StallingReceiver(shm.ShmReceiver):
        """Stops before or after it has staged."""

        async def stage(self, request: StageRequest) -> StagedFile:
            await stall.at("before stage", request.manifest.policy_version)
            staged = await super().stage(request)
            await stall.at("staged", request.manifest.policy_version)
            return staged

    vars(shm)["ShmReceiver"] = StallingReceiver
    process = RolloutProcess(settings, lambda: StallingEngine(stall))
    service.serve(process.app, settings.rollout.url)


if __name__ == "__main__":
    main(*sys.argv[1:])
