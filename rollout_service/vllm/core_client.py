"""What this process sends to the engine's, where vLLM 0.32 sends more than is needed."""

from dataclasses import replace

from vllm.multimodal.inputs import PlaceholderRange
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core_client import AsyncMPClient


class ImagesOnceClient(AsyncMPClient):  # type: ignore[misc]
    """Sends the images of a group with its first completion, and their names with the others.

    vLLM makes a request of each completion, and sends the pixels with all of them: 5 MB each for an
    image of 448 pixels. The engine's process keeps what came last, up to 4 GiB, and adds it where
    it does not come along.
    """

    _place: PlaceholderRange | None = None
    """Where the last request has its first image: all requests of a group share this object."""

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """See `AsyncMPClient.add_request_async`."""
        if images := request.mm_features:
            if images[0].mm_position is self._place:
                request.mm_features = [replace(image, data=None) for image in images]
            self._place = images[0].mm_position
        await super().add_request_async(request)
