"""Shapes, scales and axes of the report's charts.

Charts are SVG of our own, not matplotlib's, because their colours are names of classes that the
page's style sheet gives a light, a dark and a printed form, and their text is text.
"""

import math
from dataclasses import dataclass

from markupsafe import Markup

from scene_graph.drawing.svg import element


def rect(
    x: float, y: float, width: float, height: float, kind: str, hint: str = "", **more: str
) -> Markup:
    """A rectangle of a class of the style sheet, with what it says under the pointer."""
    title = [element("title", hint)] if hint else []
    return element("rect", *title, x=x, y=y, width=width, height=height, class_=kind, **more)


def drawing(title: str, width: float, height: float, *parts: str, **more: str) -> Markup:
    """The whole of a chart; the title is for those who do not see it."""
    size = f"0 0 {width:g} {height:g}"
    return element("svg", *parts, viewBox=size, role="img", aria_label=title, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Data to pixels, linear.

    Example: `Scale(low=0, high=100, start=300, end=20)` puts 0 at the bottom, 300 px down.
    """

    low: float
    high: float
    start: float
    end: float
    whole: bool = False
    """Whether only whole numbers have ticks"""

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """About five round numbers in the range, both ends included where they are round."""
        step = round_step((self.high - self.low) / 5)
        if self.whole:
            step = max(step, 1.0)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """The area between two axes of a chart."""

    width: float
    height: float
    x: Scale
    y: Scale
    x_title: str
    y_title: str

    def draw(self, title: str, *marks: str, x_ticks: bool = True, **more: str) -> Markup:
        """The whole chart: axes below `marks`.

        Args:
            title: What it shows, for those who do not see it.
            marks: Elements in the plot's pixels.
            x_ticks: Off where `marks` name the places on the x axis.
            more: Attributes of the svg element.
        """
        axes = [self._y_axis(), self._titles()]
        if x_ticks:
            axes.append(self._x_ticks())
        return drawing(title, self.width, self.height, *axes, *marks, **more)

    def _y_axis(self) -> Markup:
        lines = [
            element("line", x1=self.x.start, x2=self.x.end, y1=y, y2=y, class_="grid")
            + element("text", text, x=self.x.start - 6, y=y + 4, text_anchor="end")
            for y, text in ((self.y(tick), tick_text(tick)) for tick in self.y.ticks)
        ]
        foot = self.y.start
        base = element("line", x1=self.x.start, x2=self.x.end, y1=foot, y2=foot, class_="axis")
        return Markup("").join([*lines, base])

    def _x_ticks(self) -> Markup:
        foot = self.y.start
        return Markup("").join(
            element("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="axis")
            + element("text", text, x=x, y=foot + 17, text_anchor="middle")
            for x, text in ((self.x(tick), tick_text(tick)) for tick in self.x.ticks)
        )

    def _titles(self) -> Markup:
        centre, middle = (self.x.start + self.x.end) / 2, (self.y.start + self.y.end) / 2
        foot = self.height - 6
        turned = {"transform": f"rotate(-90 12 {middle:g})", "text_anchor": "middle"}
        below = element(
            "text", self.x_title, x=centre, y=foot, text_anchor="middle", class_="title"
        )
        return below + element("text", self.y_title, x=12, y=middle, class_="title", **turned)


def tick_text(value: float) -> str:
    """Without digits that say nothing."""
    return f"{value:,.0f}" if abs(value) >= 1 or value == 0 else f"{value:g}"
