"""Drawings of graphs, as SVG and as PNG."""

import io
import json
from itertools import combinations, islice, permutations
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from scene_graph.drawing import draw_png, draw_sketch, draw_svg
from scene_graph.drawing.layout import (
    FONT_SIZE,
    LABEL_HEIGHT,
    LONGER_SIDE,
    SHORTEST_SIDE,
    Label,
    lay_out,
)
from scene_graph.drawing.sketch import MAX_PARTS
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.images import image_from_data_uri
from tests.shared_data import SHARED_DATA

DRAWN = {"svg", "g", "rect", "image", "title", "path", "circle", "text"}
HOSTILE = "</text><script>alert(1)</script>\" onload='x' &\x1b[2J\x00\ud800\u202e"


def graph(*objects: tuple[str, tuple[float, ...]], edges: tuple[str, ...] = ()) -> SceneGraph:
    """Edges are `subject predicate object`, with ids that have no space."""
    return SceneGraph(
        objects=tuple(SceneObject(id=name, bbox=box) for name, box in objects),  # type: ignore[arg-type]
        relationships=tuple(
            Relationship(subject=s, predicate=p, object=o)
            for s, p, o in (edge.split(" ", 2) for edge in edges)
        ),
    )


MAN_AND_HAT = graph(
    ("man.1", (0, 0, 20, 20)), ("hat.2", (30, 20, 62, 46)), edges=("man.1 near hat.2",)
)


def elements(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter())


def name_of(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def overlap(first: Label, second: Label) -> float:
    across = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    down = LABEL_HEIGHT - abs(first.y - second.y)
    return max(across, 0) * max(down, 0)


def test_a_png_has_its_boxes_and_an_arrow_in_the_subjects_colour() -> None:
    blank = Image.new("RGB", (64, 48), "white")
    scale = LONGER_SIDE / 64
    with Image.open(io.BytesIO(draw_png(MAN_AND_HAT, 64, 48, blank))) as drawn:
        assert drawn.size == (LONGER_SIDE, round(48 * scale))
        man = drawn.getpixel((round(10 * scale), round(20 * scale) - 1))  # its lower edge
        hat = drawn.getpixel((round(46 * scale), round(46 * scale) - 1))
        x, y = lay_out(MAN_AND_HAT, 64, 48).arrows[0].at(0.25)
        assert drawn.getpixel((round(x), round(y))) == man
        assert len({man, hat, (255, 255, 255)}) == 3


def test_an_svg_has_the_same_and_the_picture_inside() -> None:
    picture = Image.new("RGB", (32, 24), (200, 30, 30))
    found = elements(draw_svg(MAN_AND_HAT, 64, 48, picture))
    assert [e.text for e in found if name_of(e) == "text"] == ["near", "man", "hat"]
    lines = [e for e in found if name_of(e) == "rect" and e.get("fill") == "none"]
    scale = LONGER_SIDE / 64
    assert {tuple(float(e.get(k, "")) for k in ("x", "y", "width", "height")) for e in lines} == {
        (0, 0, 312.5, 312.5),
        (468.8, 312.5, 500, 406.2),
    }
    (image,) = (e for e in found if name_of(e) == "image")
    with Image.open(io.BytesIO(image_from_data_uri(image.get("href", "")))) as inside:
        assert inside.size == (32, 24)
        np.testing.assert_allclose(np.asarray(inside)[12, 16], (200, 30, 30), atol=4)
    assert (float(image.get("width", "")), float(image.get("height", ""))) == (1000, 48 * scale)


def test_names_can_neither_run_nor_load_nor_break_anything() -> None:
    hostile = SceneGraph(
        objects=(SceneObject(id=HOSTILE, bbox=(1, 1, 9, 9)),),
        relationships=(Relationship(subject=HOSTILE, predicate=HOSTILE, object=HOSTILE),),
    )
    svg = draw_svg(hostile, 10, 10)
    svg.encode()  # half a surrogate pair could not be written
    found = elements(svg)
    assert {name_of(e) for e in found} <= DRAWN
    assert not any(key.startswith("on") for e in found for key in e.keys())  # noqa: SIM118
    assert all("<script>" in (e.text or "") for e in found if name_of(e) == "text")
    assert "\u202e" not in svg
    draw_png(hostile, 10, 10)


def test_numbers_tell_objects_of_one_name_apart() -> None:
    many = graph(*((name, (1, 1, 5, 5)) for name in ("man.1", "traffic light.2", "man.7", "x")))
    assert [box.name for box in lay_out(many, 10, 10).boxes] == [
        "man 1",
        "traffic light",
        "man 7",
        "x",
    ]


@pytest.mark.parametrize("size", [(8, 6), (9000, 6000), (20_000, 100), (100, 20_000), (1, 1)])
def test_letters_are_as_large_on_any_picture(size: tuple[int, int]) -> None:
    width, height = size
    one = graph(
        ("man.1", (0, 0, width / 2, height)),
        ("hat.2", (width / 3, 0, width, height)),
        edges=("man.1 wears hat.2",),
    )
    with Image.open(io.BytesIO(draw_png(one, *size))) as drawn:
        assert max(drawn.size) == LONGER_SIDE
        assert min(drawn.size) >= SHORTEST_SIDE
    root = elements(draw_svg(one, *size))[0]
    assert root.get("font-size") == str(FONT_SIZE)
    canvas = float(root.get("width", "")), float(root.get("height", ""))
    labels = lay_out(one, *size).labels
    assert len(labels) == 3
    for label in labels:
        assert 0 <= label.x <= canvas[0] - label.width
        assert 0 <= label.y <= canvas[1] - LABEL_HEIGHT
    assert all(overlap(*pair) == 0 for pair in combinations(labels, 2))


def test_what_cannot_be_drawn_is_left_out() -> None:
    wild = graph(
        ("man.1", (-50, 90, 40, 10)),
        ("hat.2", (float("nan"), 0, 1, 1)),
        ("cat.3", (0, 0, 1e300, float("inf"))),
        edges=("man.1 near hat.2", "man.1 near man.1", "man.1 near dog.9"),
    )
    layout = lay_out(wild, 100, 100)
    assert [(box.name, box.corners) for box in layout.boxes] == [("man", (0, 100, 400, 900))]
    assert len(layout.arrows) == 1
    assert {name_of(e) for e in elements(draw_svg(wild, 100, 100))} <= DRAWN


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="no shared data")
def test_labels_of_a_real_picture_hardly_cover_one_another() -> None:
    """Visual Genome's first picture has 31 objects and 41 relations, most of them in one corner."""
    rows = json.loads((SHARED_DATA / "vg" / "vg_sgg_49.json").read_text())
    row = next(row for row in rows if row["image_id"] in (1, "1"))
    real = SceneGraph(
        objects=tuple(SceneObject(id=o["id"], bbox=tuple(o["bbox"])) for o in row["objects"]),
        relationships=tuple(
            Relationship(subject=r["subject"], predicate=r["predicate"], object=r["object"])
            for r in row["relationships"]
        ),
    )
    labels = lay_out(real, 800, 600).labels
    assert len(labels) == 31 + 41
    covering = [pair for pair in combinations(labels, 2) if overlap(*pair) > 0]
    assert len(covering) <= 2


def test_a_graph_of_all_that_an_answer_may_hold_is_drawn() -> None:
    ids = [f"man.{number}" for number in range(500)]
    objects = [SceneObject(id=name, bbox=(i, i, i + 9, i + 9)) for i, name in enumerate(ids)]
    pairs = islice(permutations(ids, 2), 2000)
    relations = [Relationship(subject=one, predicate="near", object=other) for one, other in pairs]
    whole = SceneGraph(objects=tuple(objects), relationships=tuple(relations))
    layout = lay_out(whole, 600, 600)
    assert (len(layout.boxes), len(layout.arrows), len(layout.labels)) == (500, 2000, 2500)


def test_a_sketch_has_its_parts_with_the_classes_of_a_page() -> None:
    boxes = [((0.0, 0.0, 50.0, 100.0), "hit"), (None, "miss"), ((9.0, 9.0, 5.0, 5.0), HOSTILE)]
    arrows = [(0, 2, "near"), (0, 1, "miss"), (2, 99, "miss")]
    text = draw_sketch(boxes, arrows, (400, 100), title=HOSTILE, picture='/runs/a"b/images/x')
    root = ElementTree.fromstring(
        text.replace("\x1b", "").replace("\x00", "").replace("\ud800", "")
    )
    assert root.get("viewBox") == "0 0 200 50"
    assert root.find("image").get("href") == '/runs/a"b/images/x'  # type: ignore[union-attr]
    first, second = root.findall("rect")
    assert first.attrib == {
        "x": "0", "y": "0", "width": "25", "height": "50", "class": "line hit"
    }  # fmt: skip
    assert (second.get("width"), second.get("x")) == ("2", "2.5")
    assert [path.get("class") for path in root.findall("path")] == ["line near"]
    assert not list(root.iter("script"))
    many = draw_sketch([(box, "hit") for box, _ in boxes[:1] * 500], [], (9, 9), title="")
    assert many.count("<rect") == MAX_PARTS
