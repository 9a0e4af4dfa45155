"""Numbers, times and small pictures as templates show them."""

from collections.abc import Sequence

from markupsafe import Markup

from services.printable import age, printable

MAX_NAME = 60
"""Characters of a name that a model wrote"""
_WIDTH, _HEIGHT, _PAD = 120.0, 30.0, 3.0


def number(value: float | None) -> str:
    """Four significant digits, thousands apart, from 1e15 on with an exponent; a dash for none.

    Example: `number(2134.5) == "2,134"`, `number(0.12345) == "0.1235"`
    """
    if value is None:
        return "-"
    if abs(value) >= 1e15:
        return f"{value:.3e}"
    if value == int(value):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Two units at most, such as `3 h 10 min`; a dash for none."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes = round(whole / 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def sparkline(values: Sequence[float], label: str) -> Markup:
    """A curve as a small picture; nothing under two values."""
    if len(values) < 2:
        return Markup("")
    halves = [value / 2 for value in values]  # the spread of the whole may be too large
    low, high = min(halves), max(halves)
    spread = (high - low) or 1.0
    points = [
        (
            _PAD + (_WIDTH - 2 * _PAD) * i / (len(values) - 1),
            _HEIGHT - _PAD - (_HEIGHT - 2 * _PAD) * ((half - low) / spread if high > low else 0.5),
        )
        for i, half in enumerate(halves)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    said = f"{label}: from {number(values[0])} to {number(values[-1])}"
    return Markup(
        '<svg class="spark" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" role="img" '
        'aria-label="{said}"><polyline points="{line}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="2.4"/>'
        "</svg>"
    ).format(w=_WIDTH, h=_HEIGHT, said=said, line=line, x=points[-1][0], y=points[-1][1])


def shown_name(name: str) -> str:
    """A name on one line, at most `MAX_NAME` characters, none of which steers a page."""
    text = printable(name.replace("\n", " ").replace("\t", " "))
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 1] + "…"


FILTERS = {
    "number": number,
    "duration": duration,
    "age": age,
    "printable": printable,
    "shown_name": shown_name,
}
"""What templates may call on a value"""
