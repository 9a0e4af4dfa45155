"""The dataset folder for FiftyOne: what its importer reads, field by field."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.fiftyone import export_fiftyone
from scene_data.dataset import open_dataset
from scene_data.toy.scenes import make_toy
from services.errors import InvalidInputError, SettingsError
from services.run_folder import RunFolder
from services.settings import Settings, dump_settings
from tests.graph_lines import HORSE, MAN, RIDING, line, write
from tests.tagged_pictures import encoded, tagged


def samples(folder: Path) -> list[dict[str, Any]]:
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["media_type"] == "image"
    assert "version" not in metadata  # its importer then infers the fields
    found: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())["samples"]
    assert all((folder / sample["filepath"]).is_file() for sample in found)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three annotated images of 100 x 100: one in order, one that EXIF turns, one that is gone."""
    picture = encoded(Image.new("RGB", (100, 100), "white"), "JPEG")
    (tmp_path / "1.jpg").write_bytes(picture)
    (tmp_path / "2.jpg").write_bytes(tagged(np.zeros((200, 100, 3), np.uint8), 6, "JPEG"))
    references = [line(i, image=f"{i}.jpg") for i in (1, 2, 3)]
    write(tmp_path / "reference.jsonl", references)
    outside = HORSE | {"bbox": [20, 40, 120, 95]}
    write(
        tmp_path / "predictions.jsonl",
        [
            line(1, objects=[MAN, outside], relationships=[RIDING]),
            line(2, objects=[], relationships=[], status="invalid_json"),
        ],
    )
    return tmp_path


def test_boxes_are_relative_and_relations_are_attributes(folder: Path) -> None:
    done = export_fiftyone(
        folder / "predictions.jsonl", folder / "out", reference=str(folder / "reference.jsonl")
    )
    assert (done.num_samples, done.num_without_picture) == (2, 1)
    first, second = samples(folder / "out")
    assert first["predictions"]["_cls"] == "Detections"
    man, horse = first["predictions"]["detections"]
    assert man == {
        "_cls": "Detection",
        "label": "man",
        "bounding_box": [0.1, 0.1, 0.4, 0.8],
        "tags": [],
        "attributes": {},
        "object_id": "man.1",
        "relations": ["riding horse.2"],
    }
    # A box beyond the picture is shown as the model wrote it.
    assert horse["bounding_box"] == pytest.approx([0.2, 0.4, 1.0, 0.55])
    assert horse["relations"] == []
    assert first["predictions_relations"] == ["man.1 riding horse.2"]
    assert first["ground_truth_relations"] == ["man.1 riding horse.2", "horse.2 near tree.3"]
    assert len(first["ground_truth"]["detections"]) == 3
    assert (first["predictions_status"], second["predictions_status"]) == ("ok", "invalid_json")
    assert second["predictions"]["detections"] == []
    assert "predictions_relations" not in second  # an empty list has no type
    # As it is, where it is upright; else upright, without the tag.
    same = (folder / "1.jpg").read_bytes()
    assert (folder / "out" / first["filepath"]).read_bytes() == same
    turned = Image.open(io.BytesIO((folder / "out" / second["filepath"]).read_bytes()))
    assert (turned.size, dict(turned.getexif())) == ((100, 200), {})


def test_a_run_has_its_answers_before_and_after(tmp_path: Path) -> None:
    make_toy(tmp_path / "toy", num_train=1, num_heldout=3)
    settings = Settings.model_validate(
        {
            "run": {"name": "run", "root": str(tmp_path)},
            "model": {"path": "unused"},
            "data": {"train": "unused", "heldout": str(tmp_path / "toy/heldout.parquet")},
            "evaluation": {"num_images": 2},
        }
    )
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.config.write_text(dump_settings(settings))
    ids = [sample.image_id for sample in open_dataset(tmp_path / "toy/heldout.parquet")]
    with pytest.raises(InvalidInputError, match="has no held-out answers"):
        export_fiftyone(run.path, tmp_path / "out")
    for label in ("before", "after"):
        write(run.heldout(label), [line(ids[0])])
    done = export_fiftyone(run.path, tmp_path / "out")
    assert done.fields == ("ground_truth", "before", "after")
    first, second = samples(tmp_path / "out")
    assert (first["image_id"], second["image_id"]) == (ids[0], ids[1])
    assert len(first["after"]["detections"]) == 3
    assert second["after_status"] == "no_prediction"


def test_bad_input_is_said_and_leaves_nothing(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "mine").touch()
    with pytest.raises(SettingsError, match="name another folder with --output"):
        export_fiftyone(folder / "predictions.jsonl", folder / "full", reference="unused")
    with pytest.raises(SettingsError, match="give it with --reference"):
        export_fiftyone(folder / "predictions.jsonl", folder / "out")
    write(folder / "reference.jsonl", [line(1)])
    with pytest.raises(InvalidInputError, match="no picture of"):
        export_fiftyone(
            folder / "predictions.jsonl", folder / "out", reference=str(folder / "reference.jsonl")
        )
    assert not list(folder.glob("*out*"))
