"""Pictures of prompts are decoded within a bound on their pixels, in turn."""

import asyncio
import io
from contextlib import AsyncExitStack

import pytest
from PIL import Image

from rollout_service.vllm.pictures import MAX_PIXELS_IN_FLIGHT, Pictures
from services.errors import InvalidInputError, TooLargeError
from services.images import MAX_IMAGE_PIXELS, ImageHeader


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(file, "PNG")
    return file.getvalue()


def any_shape(_: ImageHeader) -> None:
    pass


async def test_pixels_in_flight_are_bounded_and_come_in_turn() -> None:
    pictures = Pictures(any_shape, max_pixels=10_000)
    most = now = 0
    begun = asyncio.Event()
    order: list[int] = []

    async def one(place: int, *files: bytes) -> None:
        nonlocal most, now
        async with pictures.decoded(files) as decoded:
            order.append(place)
            begun.set()
            assert all(picture.getpixel((0, 0)) == (255, 0, 0) for picture in decoded)
            now += sum(picture.width * picture.height for picture in decoded)
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= sum(picture.width * picture.height for picture in decoded)

    small, large, largest = png(10, 20), png(100, 90), png(100, 100)
    first = [asyncio.create_task(one(0, large))]
    await begun.wait()
    # The largest does not fit beside the first; the small ones after it would, and do not pass it.
    rest = []
    for place, files in enumerate([(largest,), *[(small, small)] * 8], start=1):
        rest.append(asyncio.create_task(one(place, *files)))
        await asyncio.sleep(0.001)
    await asyncio.gather(*first, *rest)
    assert len(order) == 10
    assert order[1] == 1
    assert most <= 10_000


async def test_one_that_leaves_while_it_waits_takes_no_room() -> None:
    pictures = Pictures(any_shape, max_pixels=10_000)
    large = png(100, 90)
    async with AsyncExitStack() as held:
        await held.enter_async_context(pictures.decoded([large]))
        waiting = asyncio.create_task(pictures.decoded([large]).__aenter__())
        small = asyncio.create_task(pictures.decoded([png(10, 10)]).__aenter__())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        waiting.cancel()
        assert [p.size for p in await asyncio.wait_for(small, 5)] == [(10, 10)]


async def test_what_can_never_fit_is_refused_before_it_is_decoded() -> None:
    assert MAX_PIXELS_IN_FLIGHT >= 2 * MAX_IMAGE_PIXELS
    pictures = Pictures(any_shape, max_pixels=10_000)
    with pytest.raises(TooLargeError, match=r"18,000 pixels together, over the 10,000"):
        await pictures.decoded([png(100, 90)] * 2).__aenter__()

    def narrow(_: ImageHeader) -> None:
        raise InvalidInputError("too narrow")

    with pytest.raises(InvalidInputError, match="narrow"):
        await Pictures(narrow).decoded([png(1, 1)]).__aenter__()
