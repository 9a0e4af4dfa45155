"""Decodes the pictures of prompts in threads, within a bound on the pixels of all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from PIL import Image

from services.errors import TooLargeError
from services.images import ImageHeader, decode_image, image_header

MAX_PIXELS_IN_FLIGHT = 160_000_000
"""Pixels of all pictures that are decoded and not yet sampled from: 3 bytes each, 12 for a moment
where they are large. Two and a half of the largest."""
_THREADS = 2
"""Each holds Python's lock for up to 20 ms at a time (4000x3000 pixels), and the event loop waits
for all of them."""


class Pictures:
    """The pictures of the prompts that an engine prepares."""

    def __init__(
        self, check: Callable[[ImageHeader], None], max_pixels: int = MAX_PIXELS_IN_FLIGHT
    ) -> None:
        """None are there yet.

        Args:
            check: Raises what is wrong with a picture for this model; called in a thread.
            max_pixels: The most of all together.
        """
        self._check = check
        self._room = self._max_pixels = max_pixels
        self._turns = asyncio.Lock()
        self._freed = asyncio.Event()
        self._threads = ThreadPoolExecutor(_THREADS, "prepare")

    @asynccontextmanager
    async def decoded(self, files: Sequence[bytes]) -> AsyncIterator[list[Image.Image]]:
        """A prompt's pictures, until the end of the block; waits its turn for room.

        Args:
            files: Encoded, in the order of the prompt.

        Raises:
            TooLargeError: They alone are over the bound.
            InvalidInputError: One cannot be decoded, or does not suit the model.
        """
        loop = asyncio.get_running_loop()
        num_pixels = await loop.run_in_executor(self._threads, self._num_pixels, files)
        if num_pixels > self._max_pixels:
            raise TooLargeError(
                f"the prompt's pictures have {num_pixels:,} pixels together, over the "
                f"{self._max_pixels:,} that this server decodes at a time: make them smaller"
            )
        async with self._turns:  # a large picture is not passed by small ones for ever
            while num_pixels > self._room:
                self._freed.clear()
                await self._freed.wait()
            self._room -= num_pixels
        try:
            yield [await loop.run_in_executor(self._threads, decode_image, file) for file in files]
        finally:
            self._room += num_pixels
            self._freed.set()

    def close(self) -> None:
        """Decode nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _num_pixels(self, files: Sequence[bytes]) -> int:
        headers = [image_header(file) for file in files]
        for header in headers:
            self._check(header)
        return sum(header.width * header.height for header in headers)
