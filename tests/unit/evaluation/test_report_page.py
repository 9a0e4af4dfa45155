import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.report.browser import MAX_TEXT, browser_data, json_block
from evaluation.report.page import choose_images, write_report
from evaluation.report.pictures import MAX_BYTES, data_uri
from evaluation.report.tables import flat_settings, recall_table, triplet_rows
from evaluation.result import (
    DrawnGraph,
    DrawnObject,
    DrawnRelation,
    EvaluationResult,
    ImageResult,
    Problem,
)
from scene_data.dataset import Sample, open_dataset
from scene_data.toy.scenes import make_toy
from tests.report_examples import evaluation_of, pictures_of

HOSTILE = "</script><script>alert(1)</script><!--\"'&\u2028\ud800"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, num_train=1, num_heldout=30)
    return list(open_dataset(folder / "heldout.parquet"))


@pytest.fixture(scope="module")
def result(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    return evaluation_of(samples, tmp_path_factory.mktemp("run"), "after", rate=0.6)


class Page(HTMLParser):
    """The page's elements, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action") and v]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def image(image_id: str = "1", status: str = "ok", **fields: Any) -> ImageResult:
    empty = DrawnGraph(objects=[], relations=[])
    values = {"text": None, "num_tokens": None, "recall": None, "f1": None} | fields
    graphs = {"reference": empty, "predicted": empty} | {
        k: values.pop(k) for k in ("reference", "predicted") if k in values
    }
    return ImageResult(image_id=image_id, width=40, height=30, status=status, **values, **graphs)


def test_page_shows_every_image_and_asks_for_nothing(
    result: EvaluationResult, samples: list[Sample], tmp_path: Path
) -> None:
    file = write_report(result, tmp_path, pictures_of(samples))
    text = file.read_text()
    page = Page(text)
    assert file == tmp_path / "report.html"
    assert [i["id"] for i in page.data["images"]] == [i.image_id for i in result.images]
    assert all(i["picture"].startswith("data:image/jpeg;base64,") for i in page.data["images"])
    assert "link" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert "url(" not in text
    for values in result.protocols.values():
        for key, value in values.items():
            if key != "num_images" and value is not None:
                assert f"{100 * value:.2f}" in text, key


def test_verdicts_reach_the_browser(result: EvaluationResult, samples: list[Sample]) -> None:
    by_id = {i.image_id: i for i in result.images}
    data = browser_data(result.images, [("after", by_id)], lambda *_: None)
    hits = sum(r["hit"] for i in data["images"] for r in i["sides"][0]["predicted"]["relations"])
    found = sum(sum(i["sides"][0]["found"]["relations"]) for i in data["images"])
    recalled = result.metrics["strict"]["triplet_recall"].numerator
    assert hits == found > 0
    assert recalled.count_nonzero() <= hits
    assert all(i["picture"] is None for i in data["images"])


def test_texts_cannot_become_markup(
    samples: list[Sample], result: EvaluationResult, tmp_path: Path
) -> None:
    graph = DrawnGraph(
        objects=[DrawnObject(name=HOSTILE, bbox=(0, 0, 5, 5), verdict="hallucination")],
        relations=[DrawnRelation(subject=0, predicate=HOSTILE, object=0, verdict="hallucination")],
    )
    hostile = replace(
        result,
        name=HOSTILE,
        split=HOSTILE,
        settings={HOSTILE: HOSTILE},
        failures={HOSTILE: 1},
        predicates=[replace(row, predicate=HOSTILE) for row in result.predicates],
        problem_counts={HOSTILE: 1},
        problems=[Problem(kind=HOSTILE, file=HOSTILE, line=1, image_id=HOSTILE, detail=HOSTILE)],
        images=[image(HOSTILE, HOSTILE, text=HOSTILE, predicted=graph)],
    )
    text = write_report(hostile, tmp_path, lambda *_: None).read_text()
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "alert(1)</script>" not in text
    shown = page.data["images"][0]
    assert shown["id"] == shown["sides"][0]["text"] == HOSTILE
    assert shown["sides"][0]["predicted"]["relations"][0]["predicate"] == HOSTILE


def test_json_block_is_json_and_has_no_tag() -> None:
    block = json_block({"text": HOSTILE})
    assert "<" not in block
    assert block.isascii()
    assert json.loads(block) == {"text": HOSTILE}


def test_boxes_that_no_picture_holds() -> None:
    boxes = [(0, 0, 1e300, 5), (float("nan"), 0, 1, 1), (-1e9, -5, 3, float("inf"))]
    objects = [DrawnObject(name="a", bbox=b, verdict="hallucination") for b in boxes]
    result = image(predicted=DrawnGraph(objects=objects, relations=[]))
    data = browser_data([result], [("a", {"1": result})], lambda *_: None)
    drawn = data["images"][0]["sides"][0]["predicted"]["objects"]
    assert [item["box"] for item in drawn] == [(0, 0, 80, 5), None, None]
    json_block(data)  # has no nan


def test_long_answers_are_cut() -> None:
    result = image(text="x" * (MAX_TEXT + 7))
    data = browser_data([result], [("a", {"1": result})], lambda *_: None)
    assert data["images"][0]["sides"][0]["text"].endswith("x … (7 more characters)")


def test_pictures_are_small_whatever_they_show(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    uri = data_uri((tmp_path / "noise.png").read_bytes())
    assert uri is not None
    assert len(uri) < 1.4 * MAX_BYTES
    assert data_uri(b"no image") is None
    assert data_uri(None) is None


def test_palette_and_grey_pictures_are_shown(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "I;16"):
        Image.new(mode, (8, 6)).save(tmp_path / "x.png")
        assert data_uri((tmp_path / "x.png").read_bytes()) is not None, mode


def test_sample_is_random_with_a_third_of_failures() -> None:
    images = [image(str(i), "no_answer" if i % 2 else "ok") for i in range(1000)]
    failed = {i.image_id for i in images if i.status != "ok"}
    chosen, how = choose_images(images, 90, failed)
    assert len({i.image_id for i in chosen}) == 90
    assert sum(i.image_id in failed for i in chosen) == 30
    assert chosen == sorted(chosen, key=lambda i: int(i.image_id)), "in their order"
    assert chosen == choose_images(images, 90, failed)[0], "the same again"
    assert "30 of the 500 without a predicted graph, 60 of the 500 others" in how


@pytest.mark.parametrize("num_failed", [0, 1, 50, 99, 100])
def test_sample_has_as_many_as_it_may(num_failed: int) -> None:
    images = [image(str(i)) for i in range(100)]
    failed = {str(i) for i in range(num_failed)}
    chosen, _ = choose_images(images, 60, failed)
    assert len(chosen) == 60
    assert sum(i.image_id in failed for i in chosen) >= min(num_failed, 20)


def test_no_more_images_than_asked_for(
    result: EvaluationResult, samples: list[Sample], tmp_path: Path
) -> None:
    file = write_report(result, tmp_path, pictures_of(samples), num_images=4)
    assert len(Page(file.read_text()).data["images"]) == 4
    file = write_report(result, tmp_path, pictures_of(samples), num_images=0)
    assert Page(file.read_text()).data["images"] == []


def test_recall_table_has_every_recall_and_no_other(result: EvaluationResult) -> None:
    table = recall_table(result)
    assert [protocol for protocol, _ in table.columns] == ["strict", "sgb", "r1-sgg"]
    filled = sum(bool(c.value) for _, rows in table.sections for row in rows for c in row.cells)
    values = [k for v in result.protocols.values() for k in v if k != "num_images"]
    assert filled + len(triplet_rows(result)) == len(values)


def test_settings_are_named_with_dots() -> None:
    nested = {"model": "m", "constrain": False, "sampling": {"temperature": 0.0, "seed": None}}
    assert flat_settings(nested) == {
        "model": "m",
        "constrain": "no",
        "sampling.temperature": "0.0",
    }


def test_evaluation_of_nothing_but_failures(samples: list[Sample], tmp_path: Path) -> None:
    result = evaluation_of(samples[:3], tmp_path, "broken", rate=3.1)
    text = write_report(result, tmp_path, pictures_of(samples)).read_text()
    assert set(re.findall(r'id="chart-(\w+)"', text)) == {"predicates", "failures", "lengths"}
