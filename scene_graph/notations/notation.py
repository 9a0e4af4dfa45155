"""The notations by name: each writes a graph, and reads what it wrote as the same graph."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scene_graph.cleaning import TASK_LISTS, Task
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
    grammar: Callable[[Task], str]
    """EBNF whose rule `graph` is what stands between the tags of an answer as `write` writes it, so
    that every sentence is read whole. All is bounded; a box may still be inverted."""


NOTATIONS: Mapping[NotationName, Notation] = {
    "json": Notation(write=json_text.write, read=json_text.read, grammar=json_text.grammar),
    "compact": Notation(write=compact.write, read=compact.read, grammar=compact.grammar),
}


def answer_grammar(notation: NotationName, task: Task, *, thinking: bool = False) -> str:
    """The EBNF of an answer as it is asked for and taught: a graph in its tags.

    Args:
        notation: Of the graph.
        task: What is asked for.
        thinking: Text in tags of its own, without `<`, comes first; nothing but the number of
            tokens bounds it.
    """
    think = r'"<think>" [^<]* "</think>\n" ' if thinking else ""
    root = f'root ::= {think}"<answer>" graph "</answer>"'
    return f"{root}\n{NOTATIONS[notation].grammar(task)}\n"


ANSWER_GRAMMARS = frozenset(
    answer_grammar(notation, task, thinking=thinking)
    for notation in NOTATIONS
    for task in TASK_LISTS
    for thinking in (False, True)
)
"""All that there are"""
