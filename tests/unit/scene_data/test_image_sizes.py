"""What rows say about their images, held against the files, wherever rows are read."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.report.pictures import data_uri
from scene_data.dataset import open_dataset
from scene_data.inspection import Inspection, Inspector
from scene_data.reading.rows import RowError, read_size
from scene_data.reading.sources import open_rows
from scene_graph.drawing import draw_png
from scene_graph.drawing.layout import LONGER_SIDE
from scene_graph.graph import SceneGraph, SceneObject
from services.errors import InvalidInputError
from services.images import decode_image, image_from_data_uri
from tests.raw_annotations import converted, put
from tests.shared_data import SHARED_DATA
from tests.tagged_pictures import ORIENTATIONS, encoded, noise, png_header, tagged

CASES = SHARED_DATA.parent / "cases"
OBJECTS = [{"id": "box.1", "bbox": [2, 3, 20, 30]}, {"id": "ball.2", "bbox": [5, 6, 30, 40]}]
EDGES = [{"subject": "box.1", "predicate": "near", "object": "ball.2"}]
TURNED = "annotations are of the image without its EXIF orientation"
OTHER_SIZE = "image has another size than its annotations say"


def dataset(folder: Path, image: bytes, *sizes: tuple[Any, Any]) -> Path:
    """Rows of one 60 x 40 image that say these widths and heights."""
    put(folder / "a.png", image)
    rows = [
        {"image_id": str(i), "image": "a.png", "objects": OBJECTS, "relationships": EDGES}
        | {"width": width, "height": height}
        for i, (width, height) in enumerate(sizes)
    ]
    return put(folder / "rows.jsonl", "\n".join(map(json.dumps, rows)).encode())


def inspected(path: Path) -> Inspection:
    return Inspector(open_rows(str(path), need_images=False), check_images=True).run()


@pytest.mark.parametrize(
    ("said", "size"),
    [((None, None), None)] + [((w, 40), (60, 40)) for w in (60, 60.0, "60")],
)
def test_sizes_that_rows_may_say(said: Any, size: tuple[int, int] | None) -> None:
    found = read_size({"width": said[0], "height": said[1]})
    assert found == size
    assert found is None or {type(side) for side in found} == {int}


@pytest.mark.parametrize(
    "side", [0, -60, 0.5, 60.5, "wide", True, float("nan"), float("inf"), [60], None]
)
def test_other_sizes_are_faults(side: Any) -> None:
    for row in ({"width": side, "height": 40}, {"width": 40, "height": side}):
        with pytest.raises(RowError, match="whole numbers above 0"):
            read_size(row)


def test_a_size_that_the_file_does_not_have_is_a_fault_everywhere(tmp_path: Path) -> None:
    said = [(60, 40), (1024, 768), (40, 60), (None, None), (60.0, 40.0), (0, 0), ("x", "40")]
    path = dataset(tmp_path, encoded(Image.new("RGB", (60, 40))), *said)
    found = inspected(path)
    assert (found.num_usable, found.num_broken) == (3, 4)
    assert found.broken_by_reason == {
        OTHER_SIZE: 2,
        "width and height are not above 0": 2,
    }
    opened = open_dataset(path)
    assert len(opened) == 5
    assert [opened[i].width for i in (0, 3, 4)] == [60] * 3
    for index in (1, 2):
        with pytest.raises(InvalidInputError, match="image has 60x40 pixels, its annotations say"):
            opened[index]
    done = converted(path, tmp_path / "out")
    assert done.tally.reasons == found.broken_by_reason
    assert done.files["rows"].num_images == 3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sizes_are_of_the_upright_picture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, orientation: int
) -> None:
    data = tagged(noise(40, 60), orientation)
    path = dataset(tmp_path, data, (60, 40), (40, 60), (None, None))
    opened, found = open_dataset(path), inspected(path)
    for index in (0, 2):
        assert (opened[index].width, opened[index].height) == (60, 40)
        assert opened[index].image_bytes == data
    with pytest.raises(InvalidInputError) as refused:
        opened[1]
    is_turned = orientation >= 5
    assert ("EXIF orientation is applied" in refused.value.message) == is_turned
    assert found.broken_by_reason == {TURNED if is_turned else OTHER_SIZE: 1}
    assert (found.width.min, found.width.max) == (60, 60)
    assert found.num_turned == (2 if orientation > 1 else 0)
    warned = [record for record in caplog.records if "upright picture" in record.message]
    assert len(warned) == (orientation > 1)
    assert converted(path, tmp_path / "out").tally.reasons == found.broken_by_reason


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_drawn_box_lies_on_its_object(orientation: int) -> None:
    """On a drawing and on the report's picture; without the turn it would lie elsewhere."""
    width, height, box = 60, 40, (42, 4, 54, 12)
    upright = np.full((height, width, 3), 255, dtype=np.uint8)
    upright[box[1] : box[3], box[0] : box[2]] = (255, 0, 0)
    data = tagged(upright, orientation)
    graph = SceneGraph(objects=(SceneObject(id="box.1", bbox=box),), relationships=())
    scale = LONGER_SIDE / width
    png = draw_png(graph, width, height, decode_image(data))
    drawn = np.asarray(Image.open(io.BytesIO(png)))
    lines = [round(side * scale) for side in box]
    middle = [(lines[0] + lines[2]) // 2, (lines[1] + lines[3]) // 2]
    picture = drawn.astype(int)
    assert picture[middle[1], middle[0]].tolist() == [255, 0, 0]
    for x, y in ((lines[0], middle[1]), (lines[2], middle[1]), (middle[0], lines[3])):
        assert picture[y, x].tolist() not in ([255, 0, 0], [255, 255, 255]), "the box's line"
    red = np.argwhere((picture[..., 0] > 200) & (picture[..., 1] < 60) & (picture[..., 2] < 60))
    assert (red.min(0) >= [lines[1] - 2, lines[0] - 2]).all()
    assert (red.max(0) <= [lines[3] + 2, lines[2] + 2]).all()
    uri = data_uri(data)
    assert uri is not None
    shown = np.asarray(Image.open(io.BytesIO(image_from_data_uri(uri)))).astype(int)
    assert shown.shape == upright.shape
    red = np.argwhere((shown[..., 0] > 180) & (shown[..., 1] < 90))
    assert np.abs(red.min(0) - (box[1], box[0])).max() <= 1
    assert np.abs(red.max(0) - (box[3] - 1, box[2] - 1)).max() <= 1


def test_no_box_is_drawn_on_a_picture_of_another_shape() -> None:
    data = tagged(noise(40, 60), 6)
    for size in ((60, 40), (120, 80), (1024, 683)):
        assert data_uri(data, size) is not None
    for size in ((40, 60), (60, 60)):
        assert data_uri(data, size) is None


def test_inspection_and_conversion_count_what_servers_refuse(tmp_path: Path) -> None:
    refused = {
        "image is too large": png_header(20_000, 10_000),
        "image is too narrow": encoded(Image.new("RGB", (2100, 10))),
        "not an image of the formats PNG, JPEG, WEBP, BMP, GIF, AVIF, HEIF": encoded(
            Image.new("RGB", (60, 40)), "TIFF"
        ),
        "image is damaged": encoded(Image.fromarray(noise(40, 60)))[:-2000],
    }
    for number, (reason, data) in enumerate(refused.items()):
        path = dataset(tmp_path / str(number), data, (None, None))
        if reason != "image is damaged":  # which its header does not say
            with pytest.raises(InvalidInputError, match=rf"line 1 \(image 0\): {reason}.*data\.md"):
                open_dataset(path)[0]
        assert inspected(path).broken_by_reason == {reason: 1}
        with pytest.raises(InvalidInputError, match=f"1 x {reason}"):
            converted(path, tmp_path / f"{number}/out")


@pytest.mark.skipif(not CASES.is_dir(), reason="the failing inputs are not here")
def test_the_sizes_that_users_brought() -> None:
    folder = CASES / "05_number_shapes"
    broken = {file.stem: inspected(file).num_broken for file in folder.glob("*_size.jsonl")}
    assert broken == {
        "float_size": 0,
        "null_size": 0,
        "str_size": 0,
        "swapped_size": 1,
        "zero_size": 1,
    }
    assert inspected(folder / "size_wrong.jsonl").num_broken == 1
    liar = inspected(CASES / "64_pq_size_liar/train.parquet")
    assert (liar.num_usable, liar.broken_by_reason) == (0, {OTHER_SIZE: liar.num_rows})
