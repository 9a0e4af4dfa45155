"""Boxes and the spaces they are written in. The one place that converts between them.

A box is x1, y1, x2, y2. Inside the system boxes are *fractions* of the image's sides (0..1);
outside they are

- `pixels:WxH`: pixels of an image of that size (annotations; Qwen2.5-VL, which writes pixels of its
  resized input);
- `relative_1000`: thousandths of each side (Qwen2-VL, Qwen3-VL);
- `relative_1`: fractions.
"""

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
"""[N, 4]"""

_PIXELS = re.compile(r"^pixels:([1-9]\d*)x([1-9]\d*)$")


@dataclass(frozen=True, slots=True)
class BoxSpace:
    """The space that boxes are written in; as text it is its name in messages.

    Example: `BoxSpace.parse("pixels:640x480") == BoxSpace.pixels(640, 480)`
    """

    name: str
    """`relative_1000`, `relative_1` or `pixels:WxH`"""
    scale: tuple[float, float]
    """What 1.0 of the image's width and height is"""

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(name: str) -> "BoxSpace":
        """The space of a name.

        Raises:
            ValueError: No space has this name.
        """
        if name in _RELATIVE:
            return BoxSpace(name, (_RELATIVE[name], _RELATIVE[name]))
        if match := _PIXELS.match(name):
            return BoxSpace(name, (float(match[1]), float(match[2])))
        raise ValueError(f"unknown box space {name!r}: use relative_1000, relative_1 or pixels:WxH")

    @staticmethod
    def pixels(width: int, height: int) -> "BoxSpace":
        """Pixels of an image of this size."""
        return BoxSpace(f"pixels:{width}x{height}", (float(width), float(height)))

    def __str__(self) -> str:
        return self.name

    def converted(self, boxes: Boxes, space: "BoxSpace") -> Boxes:
        """[N, 4] in this space to [N, 4] in another; not rounded."""
        return boxes.reshape(-1, 4) / (*self.scale, *self.scale) * (*space.scale, *space.scale)


_RELATIVE = {"relative_1000": 1000.0, "relative_1": 1.0}
RELATIVE_1000 = BoxSpace.parse("relative_1000")
RELATIVE_1 = BoxSpace.parse("relative_1")


def smart_resize(
    width: int, height: int, *, factor: int = 28, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Width and height that Qwen's vision-language models resize an image to.

    Both sides become multiples of `factor` (patch size times merge size), the area falls in
    [min_pixels, max_pixels], the aspect ratio is kept as far as that allows. Same rule as
    transformers' `smart_resize` (arXiv 2409.12191, section 2.1); a test compares them.

    Raises:
        ValueError: The sides differ by more than a factor of 200.
    """
    if max(width, height) / min(width, height) > 200:
        raise ValueError(f"aspect ratio of a {width}x{height} image is over 200")
    new_w, new_h = round(width / factor) * factor, round(height / factor) * factor
    if new_w * new_h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        new_w = max(factor, math.floor(width / shrink / factor) * factor)
        new_h = max(factor, math.floor(height / shrink / factor) * factor)
    elif new_w * new_h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        new_w = math.ceil(width * grow / factor) * factor
        new_h = math.ceil(height * grow / factor) * factor
    return new_w, new_h


def model_box_space(
    space: str, width: int, height: int, *, factor: int = 28, min_pixels: int, max_pixels: int
) -> str:
    """The wire name of the space a model writes boxes in, for one image.

    Args:
        space: `relative_1000`, `relative_1`, or `pixels` for pixels of the resized input.
        width: The original image's, in pixels.
        height: The original image's, in pixels.
        factor: The processor's patch size times its merge size.
        min_pixels: The processor's lower limit.
        max_pixels: The processor's upper limit.
    """
    if space != "pixels":
        return space
    new_w, new_h = smart_resize(
        width, height, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels
    )
    return str(BoxSpace.pixels(new_w, new_h))
