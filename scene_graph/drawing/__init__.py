"""Draws a graph over its picture: boxes with names, arrows with predicates.

`layout.py` says what lies where, `svg.py` and `png.py` draw it, and `sketch.py` draws a small one
for a page.
"""

from scene_graph.drawing.png import draw_png
from scene_graph.drawing.sketch import draw_sketch
from scene_graph.drawing.svg import draw_svg

__all__ = ["draw_png", "draw_sketch", "draw_svg"]
