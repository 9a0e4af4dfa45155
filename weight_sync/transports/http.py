"""`http`: a server is sent the bytes and passes them on, for hosts that share nothing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from services.schemas.weights import PassOnRequest, StageRequest, Version
from services.settings import Settings
from services.waiting import racing
from weight_sync.fan_out import FanOut
from weight_sync.transports.files import FileSender, StagedFile, delta_file, temporary_folder
from weight_sync.transports.receiver import Receiver
from weight_sync.transports.sender import CheckedManifest, Peer, select


class HttpSender(FileSender):
    """Keeps the version in a file of its own, for all servers and for those that come late."""

    name = "http"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._writing = asyncio.Lock()
        self._fan_out: tuple[str, FanOut[str]] | None = None
        """The present version's, with its checksum; servers by their url."""
        self._peers: dict[str, Peer] = {}
        self._need_whole: set[str] = set()
        """Servers that the present version's delta is of no use to; by their url."""

    def file(self, version: Version) -> Path:
        """See `FileSender.file`. `TMPDIR` chooses the disk."""
        return temporary_folder(self._settings.run.name, "trainer") / version.file_name

    async def stage(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        """See `Sender.stage`: servers that have the version pass it on (`FanOut`).

        A delta is refused by a server without the version before, which is seeded then.
        """
        self._need_whole.clear()
        return await self._pass_on(peers, checked)

    async def seed(self, peer: Peer, checked: CheckedManifest) -> bool:
        """See `Sender.seed`: the version is sent whole."""
        self._need_whole.add(peer.record.url)
        return bool(await self.commit(await self._pass_on([peer], checked), checked))

    async def _pass_on(self, peers: Sequence[Peer], checked: CheckedManifest) -> list[Peer]:
        fan_out = self._fan_out_of(checked)
        self._peers |= {peer.record.url: peer for peer in peers}

        async def reach(peer: Peer) -> bool:
            # One that is silent now must not have the others wait for it.
            return await peer.tell(lambda c: c.policy()) and await fan_out.reach(peer.record.url)

        return await select(peers, reach)

    def _fan_out_of(self, checked: CheckedManifest) -> FanOut[str]:
        """The version's, which servers that come late belong to as well."""
        if self._fan_out is None or self._fan_out[0] != checked.checksum:

            async def give(giver: str | None, to: str) -> bool:
                source = None if giver is None else self._peers[giver]
                return await self._give(checked, source, self._peers[to])

            self._peers = {}
            self._fan_out = checked.checksum, FanOut(give)
        return self._fan_out[1]

    async def _give(self, checked: CheckedManifest, giver: Peer | None, to: Peer) -> bool:
        whole = checked.manifest.delta is None or to.record.url in self._need_whole
        if giver is None:
            file = self.file(checked.version)
            file = await self._written(file) if whole else delta_file(file)
            sent = await to.tell(lambda c: c.upload(file, checked.version))
        else:
            sent = await _passed_on(giver, to, checked, whole=whole)
        return sent and await self._have_staged(checked, to)

    async def _written(self, file: Path) -> Path:
        """The version's whole file, which a delta does without until somebody needs it."""
        async with self._writing:
            await asyncio.to_thread(self.write_again, file)
        return file

    async def _have_staged(self, checked: CheckedManifest, to: Peer) -> bool:
        request = checked.stage(self.name)
        return await to.tell(lambda c: c.stage(request), num_bytes=checked.num_bytes)


async def _passed_on(giver: Peer, to: Peer, checked: CheckedManifest, *, whole: bool) -> bool:
    """Whether one server has sent the version to another."""
    request = PassOnRequest(checksum=checked.checksum, url=to.record.url, whole=whole)
    passing = giver.tell(
        lambda c: c.pass_on(request),
        num_bytes=checked.num_bytes,
        otherwise=f"does not pass {checked.version} on to {to.record.url}, and the trainer does",
    )
    async with racing(passing, giver.falls_silent()) as (passed, _):
        return passed.done() and passed.result()


class HttpReceiver(Receiver):
    """The file has come before: `PUT /v1/weights/files/INCARNATION/VERSION`."""

    async def stage(self, request: StageRequest) -> StagedFile:
        """See `Receiver.stage`."""
        return await self._uploads.stage(request)
