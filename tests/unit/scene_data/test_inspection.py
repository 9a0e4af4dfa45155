import json
from pathlib import Path
from typing import Any

import pytest

from scene_data.inspection import Inspection, Inspector
from scene_data.reading.sources import open_rows
from scene_data.vocabulary import load_vocabulary
from tests.raw_annotations import picture, put

OBJECTS = [
    {"id": "man.1", "bbox": [0, 0, 32, 24]},
    {"id": "traffic light.2", "bbox": [10, 10, 70, 40]},
]
EDGES = [{"subject": "man.1", "predicate": "near", "object": "traffic light.2"}]


def _row(number: int, **changes: Any) -> dict[str, Any]:
    row = {
        "image_id": str(number),
        "image": "a.jpg",
        "objects": OBJECTS,
        "relationships": EDGES,
    }
    return {**row, **changes}


def _inspected(folder: Path, *rows: Any, **options: Any) -> Inspection:
    put(folder / "a.jpg", picture())
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    source = open_rows(str(folder / "rows.jsonl"), need_images=False)
    return Inspector(source, **options).run()


def test_numbers_of_a_small_dataset(tmp_path: Path) -> None:
    found = _inspected(
        tmp_path, _row(1), _row(2, relationships=[]), vocabulary=load_vocabulary("vg150")
    )
    assert (found.num_rows, found.num_usable, found.num_without_relationship) == (2, 2, 1)
    assert (found.width.mean, found.height.max, found.num_sized) == (64, 48, 2)
    assert found.relationships_per_image.mean == 0.5
    assert found.objects_per_image.median == 2
    assert found.box_area.min == pytest.approx(0.25)
    assert found.box_aspect.max == pytest.approx(2)
    assert found.num_boxes_outside == 2
    assert found.objects.top == [("man", 2), ("traffic light", 2)]
    assert (found.objects.num_outside, found.objects.top_outside) == (2, [("traffic light", 2)])
    assert len(found.objects.unused) == 149
    assert (found.predicates.num_names, found.predicates.num_outside) == (1, 0)
    assert (found.predicates.num_for_half, found.predicates.num_rare) == (1, 1)


def test_faults_are_counted_by_reason_with_their_places(tmp_path: Path) -> None:
    put(tmp_path / "cut.jpg", picture()[:-100])
    rows = (
        _row(1),
        "{",
        "",
        _row(3, image="missing.jpg"),
        _row(4, image=None),
        _row(1),
        _row(5, objects=[OBJECTS[0], OBJECTS[0]]),
        _row(6, relationships=EDGES * 3),
        _row(7, image="cut.jpg"),
    )
    found = _inspected(tmp_path, *rows)
    assert (found.num_rows, found.num_usable, found.num_broken) == (8, 4, 3)
    assert found.broken_by_reason == {
        "not JSON": 1,
        "image cannot be read": 1,
        "an object id comes twice": 1,
    }
    assert [line.partition(" (")[0] for line in found.broken] == ["line 2", "line 4", "line 7"]
    assert (found.num_without_image, found.num_repeated_ids) == (1, 1)
    assert found.repeated_ids == ["1"]
    assert found.dropped == {"repeated_relationship": 2}
    decoded = _inspected(tmp_path, *rows, check_images=True)
    assert (decoded.num_usable, decoded.images_checked) == (3, True)
    assert decoded.broken_by_reason["image is damaged"] == 1


def test_nothing_to_count_is_all_zero(tmp_path: Path) -> None:
    found = _inspected(tmp_path, _row(1, objects=[]))
    assert (found.num_usable, found.box_area.max, found.objects.top) == (0, 0, [])
