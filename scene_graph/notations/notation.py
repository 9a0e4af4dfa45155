"""The notations by name: each writes a graph, and reads what it wrote as the same graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scene_graph.cleaning import Task
from scene_graph.graph import SceneGraph
from scene_graph.notations import compact, json_text
from scene_graph.notations.answer import Answer, Lists, NotationName


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How a graph is text.

    Example: `NOTATIONS["compact"].write(graph, "sgg")`
    """

    write: Callable[[SceneGraph, Task], str]
    """The text of a graph whose boxes are in the space to write them in."""
    read: Callable[[Answer, Task], Lists]
    """What any text says, or why it says nothing; never raises."""


NOTATIONS: Mapping[NotationName, Notation] = {
    "json": Notation(write=json_text.write, read=json_text.read),
    "compact": Notation(write=compact.write, read=compact.read),
}
