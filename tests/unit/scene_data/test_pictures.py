"""Pictures by themselves, and rows without a graph, as datasets."""

import json
from pathlib import Path

import datasets
import pytest
from PIL import Image

from scene_data.dataset import open_dataset
from scene_data.reading.pictures import find_pictures
from services.errors import InvalidInputError
from tests.raw_annotations import put
from tests.tagged_pictures import encoded, noise

PICTURE = encoded(Image.fromarray(noise(20, 30)))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("photos/b.png", "photos/a.JPG", "photos/in/c.webp", "photos/out/drawings/b.png"):
        put(Path(name), PICTURE)
    for name in ("photos/.hidden/d.png", "photos/.e.png", "photos/notes.md", "photos/phone.heic"):
        put(Path(name), b"")
    return Path("photos")


def test_files_folders_lists_and_patterns_name_pictures_once_each(photos: Path) -> None:
    inside = ["photos/a.JPG", "photos/b.png", "photos/in/c.webp", "photos/phone.heic"]
    out = photos / "out"
    assert list(map(str, find_pictures(["photos"], but=out))) == inside
    assert len(find_pictures(["photos"])) == len(inside) + 1
    put(photos / "list.txt", b"\xef\xbb\xbfin/c.webp\r\n\n b.png \n")
    listed = find_pictures(["photos/list.txt", "photos/b.png", "new.jpg"])
    assert list(map(str, listed)) == ["photos/in/c.webp", "photos/b.png", "new.jpg"]
    assert list(map(str, find_pictures(["photos/**/*.png"], but=out))) == ["photos/b.png"]
    put(Path("odd[1].png"), PICTURE)
    assert find_pictures(["odd[1].png"]) == [Path("odd[1].png")]


def test_a_link_to_a_file_that_is_gone_is_named(photos: Path) -> None:
    (photos / "link.jpg").symlink_to("gone.jpg")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "folder.png").symlink_to("in")
    found = {path.name for path in find_pictures(["photos"])}
    assert {"link.jpg", "loop.png"} <= found
    assert "folder.png" not in found
    assert find_pictures(["photos/l*.jpg"]) == [photos / "link.jpg"]
    dataset = open_dataset("photos", annotated=False)
    index = [dataset.image_id(i) for i in range(len(dataset))].index("photos/link.jpg")
    with pytest.raises(InvalidInputError, match=r"link\.jpg: image cannot be read: No such file"):
        dataset[index]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", "no picture in the folder empty"),
        ("photos/*.tif", "no file fits"),
        ("nothing.txt", "cannot be read"),
        ("empty.txt", "names no picture"),
    ],
)
def test_where_no_picture_is_it_says_so(photos: Path, name: str, said: str) -> None:
    Path("empty").mkdir()
    put(Path("empty.txt"), b"\n")
    with pytest.raises(InvalidInputError, match=said):
        find_pictures([name])


@pytest.mark.parametrize("name", ["photos", "photos/b.png", "photos/*.png", "list.txt"])
def test_pictures_are_rows_where_no_graph_is_needed(photos: Path, name: str) -> None:
    put(Path("list.txt"), b"photos/b.png")
    dataset = open_dataset(name, annotated=False)
    index = [dataset.image_id(i) for i in range(len(dataset))].index("photos/b.png")
    sample = dataset[index]
    assert (sample.image_id, sample.width, sample.height) == ("photos/b.png", 30, 20)
    assert (sample.image_bytes, sample.graph.objects) == (PICTURE, ())
    with pytest.raises(InvalidInputError):
        open_dataset(name)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_rows_need_no_objects_where_no_graph_is_needed(tmp_path: Path, kind: str) -> None:
    put(tmp_path / "a.png", PICTURE)
    rows = [{"image_id": str(n), "image": "a.png"} for n in range(3)]
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(file)
    else:
        lines = "\n".join(map(json.dumps, rows))
        file.write_text(lines if kind == "jsonl" else json.dumps(rows))
    dataset = open_dataset(file, annotated=False)
    assert [sample.image_id for sample in dataset] == ["0", "1", "2"]
    assert dataset[2].graph.objects == ()
    with pytest.raises(InvalidInputError, match="objects"):
        open_dataset(file)
