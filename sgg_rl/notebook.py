"""Graphs as pictures, where a notebook runs."""

import sys
from typing import Any


def show_graphs() -> None:
    """Have IPython draw a `SceneGraph`, if it runs; a terminal still gets text.

    Other values draw themselves by `_repr_svg_`. The graph's own folder has pure values, and does
    not know how they are drawn.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        formatter = shell.display_formatter.formatters["image/svg+xml"]
        formatter.for_type_by_name("scene_graph.graph", "SceneGraph", _drawn)


def _drawn(graph: Any) -> str:
    from sgg_rl.pictures import on_white

    return on_white(graph)
