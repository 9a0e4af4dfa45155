"""The report in a real browser, from disk, with the network off."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from evaluation.reading.lines import GraphLine, graph_lists
from evaluation.report.page import write_report
from evaluation.report.predictions import write_predictions
from evaluation.result import DrawnGraph, DrawnObject, DrawnRelation, EvaluationResult
from evaluation.scoring.compare import compare
from scene_data.dataset import Sample, open_dataset
from scene_data.toy.scenes import make_toy
from tests.report_examples import evaluation_of, pictures_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "CI needs chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("toy")
    make_toy(folder, num_train=1, num_heldout=40)
    return list(open_dataset(folder / "heldout.parquet"))


@pytest.fixture(scope="module")
def result(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    return evaluation_of(samples, tmp_path_factory.mktemp("run"), "after", rate=0.5)


@dataclass
class Opened:
    """A page and all that it did beside showing itself."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def shown(self) -> int:
        return self.page.locator("#grid > li").count()


def opened(browser: Browser, file: Path, *, scheme: str = "light", width: int = 1280) -> Opened:
    context = browser.new_context(
        offline=True,
        color_scheme="dark" if scheme == "dark" else "light",
        viewport={"width": width, "height": 900},
    )
    context.set_default_timeout(10_000)
    found = Opened(page=context.new_page())

    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.goto(file.as_uri())
    return found


def test_report_of_one_evaluation(
    browser: Browser, result: EvaluationResult, samples: list[Sample], tmp_path: Path
) -> None:
    file = write_report(result, tmp_path, pictures_of(samples))
    report = opened(browser, file)
    page = report.page
    check_filters(report, result)
    check_sorting(page, result)
    check_predicate_table(page, result)
    check_image(page, result)
    check_keys(page, result)
    check_deep_links(page, file, result)
    asked = {url.partition("#")[0] for url in report.requests if not url.startswith("data:")}
    assert asked == {file.as_uri()}, "nothing but itself"
    assert not report.complaints
    page.context.close()


def test_page_of_predictions_without_a_reference(
    browser: Browser, samples: list[Sample], tmp_path: Path
) -> None:
    lines = []
    for sample in samples[:5]:
        objects, edges = graph_lists(sample.graph)
        lines.append(
            GraphLine(
                image_id=sample.image_id,
                width=sample.width,
                height=sample.height,
                objects=objects,
                relationships=edges,
            )
        )
    lines[4].objects, lines[4].relationships, lines[4].status = [], [], "invalid_json"
    pictures = {sample.image_id: sample.image_bytes for sample in samples}
    file = write_predictions(lines, tmp_path, pictures.get, {"model": "runs/demo"})
    found = opened(browser, file)
    page, first = found.page, lines[0]
    assert found.shown() == 5
    page.select_option("#status", "failed")
    assert found.shown() == 1
    page.select_option("#status", "")
    assert page.locator("#role").is_hidden()
    page.locator("#grid a").first.click()
    assert page.locator(".drawing image").count() == 1
    assert page.locator(".drawing .object").count() == len(first.objects)
    relations = page.locator(".triplets button")
    assert relations.count() == len(first.relationships)
    relations.first.hover()
    assert page.locator(".drawing .relation.on").count() == 1
    strokes = page.locator(".drawing .object .line").evaluate_all(
        "lines => lines.map((line) => getComputedStyle(line).stroke)"
    )
    assert len(set(strokes)) == len(strokes) > 1, "each object has its colour"
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer h3").first).to_contain_text(samples[1].image_id)
    assert not found.complaints
    page.context.close()


def check_filters(report: Opened, result: EvaluationResult) -> None:
    page, images = report.page, result.images
    assert report.shown() == len(images) == 40
    page.select_option("#status", "failed")
    assert report.shown() == sum(i.status != "ok" for i in images) > 0
    for status, count in result.failures.items():
        page.select_option("#status", status)
        assert report.shown() == count
    page.select_option("#status", "")
    page.select_option("#predicate", "above")
    for role, side, verdicts in (
        ("reference", "reference", ("hit", "miss")),
        ("predicted", "predicted", ("hit", "hallucination")),
        ("found", "reference", ("hit",)),
        ("missed", "reference", ("miss",)),
        ("hallucinated", "predicted", ("hallucination",)),
    ):
        page.select_option("#role", role)
        wanted = sum(
            any(
                r.predicate == "above" and r.verdict in verdicts for r in getattr(i, side).relations
            )
            for i in images
        )
        assert report.shown() == wanted > 0, role
    assert page.locator("#shown").inner_text() == f"{report.shown()} of 40 images"
    page.select_option("#predicate", "")
    page.fill("#search", images[7].image_id.upper())
    assert report.shown() == sum(images[7].image_id in i.image_id for i in images)
    page.fill("#search", "no such id")
    assert report.shown() == 0
    page.fill("#search", "")


def check_sorting(page: Page, result: EvaluationResult) -> None:
    recall = {i.image_id: i.recall for i in result.images}
    hallucinations = {
        i.image_id: sum(r.verdict == "hallucination" for r in i.predicted.relations)
        for i in result.images
    }
    for order, values, falling in (
        ("recall-up", recall, False),
        ("recall-down", recall, True),
        ("hallucinations", hallucinations, True),
    ):
        page.select_option("#order", order)
        shown = [values[name] for name in page.locator("#grid b").all_inner_texts()]
        assert shown == sorted(shown, key=lambda v: v or 0, reverse=falling), order
        assert len(set(shown)) > 1
    page.select_option("#order", "given")
    assert page.locator("#grid b").all_inner_texts() == [i.image_id for i in result.images]


def check_predicate_table(page: Page, result: EvaluationResult) -> None:
    rows = page.locator("#predicate-table tbody tr:visible")
    names = page.locator("#predicate-table tbody th:visible")
    wanted = [row.predicate for row in result.predicates]
    assert names.all_inner_texts() == wanted
    header = page.locator("#predicate-table th", has_text="predicate").first
    header.locator("button").click()
    assert names.all_inner_texts() == sorted(wanted)
    header.locator("button").click()
    assert names.all_inner_texts() == sorted(wanted, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    page.fill('[data-filter="predicate-table"][type=search]', "of")
    assert rows.count() == sum("of" in name for name in wanted) < len(wanted)
    page.fill('[data-filter="predicate-table"][type=search]', "")
    page.select_option('select[data-filter="predicate-table"]', "tail")
    assert rows.count() == sum(row.group == "tail" for row in result.predicates)


def check_image(page: Page, result: EvaluationResult) -> None:
    """Boxes, arrows, labels; pointing at a triplet brings out its arrow and boxes."""
    image = max(result.images, key=lambda i: len(i.predicted.relations))
    page.locator("#grid a", has_text=image.image_id).first.click()
    expect(page.locator("#viewer h3").first).to_contain_text(image.image_id)
    for place, graph in ((0, image.reference), (1, image.predicted)):
        drawing = page.locator(".drawing").nth(place)
        assert drawing.locator("image").count() == 1
        assert drawing.locator(".object rect.line").count() == len(graph.objects)
        assert drawing.locator(".relation path.line").count() == len(graph.relations)
        for verdict in ("hit", "miss", "hallucination"):
            arrows = drawing.locator(f".relation.{verdict}")
            assert arrows.count() == sum(r.verdict == verdict for r in graph.relations)
        labels = drawing.locator(".label text").all_text_contents()
        assert {r.predicate for r in graph.relations} <= set(labels)
    assert page.locator(".triplets button").count() == len(
        [*image.reference.relations, *image.predicted.relations]
    )
    drawing = page.locator(".drawing").first
    page.locator(".triplets button").first.focus()
    assert drawing.locator(".relation.on").count() == 1
    assert drawing.locator(".object.on").count() == 2
    expect(drawing).to_have_class("drawing pointed")
    page.keyboard.press("l")
    assert drawing.locator(".label:not(.on):visible").count() == 0
    page.keyboard.press("l")
    assert drawing.locator(".label:visible").count() > 0


def check_keys(page: Page, result: EvaluationResult) -> None:
    page.keyboard.press("Escape")
    expect(page.locator("#grid")).to_be_visible()
    page.locator("#grid a").first.click()
    title = page.locator("#viewer h3").first
    expect(title).to_contain_text("1 of 40")  # a key that comes before it is shown moves nothing
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)):
        page.keyboard.press(key)
        expect(title).to_contain_text(f"Image {result.images[place].image_id} {place + 1} of 40")
    page.focus("#search")
    page.keyboard.press("ArrowRight")
    expect(title).to_contain_text("2 of 40")


def check_deep_links(page: Page, file: Path, result: EvaluationResult) -> None:
    failure = next(i for i in result.images if i.status != "ok")
    page.goto(f"{file.as_uri()}#image={failure.image_id}")
    expect(page.locator("#viewer h3").first).to_contain_text(failure.image_id)
    assert failure.text is not None
    expect(page.locator("#viewer pre")).to_have_text(failure.text)
    page.goto(f"{file.as_uri()}#image=nobody")
    expect(page.locator("#viewer")).to_contain_text("nobody is not among the images")


def test_comparison_on_a_phone_in_the_dark(
    browser: Browser, result: EvaluationResult, samples: list[Sample], tmp_path: Path
) -> None:
    first = evaluation_of(samples, tmp_path, "before", seed=5, rate=0.9)
    compared = compare(first, result)
    file = write_report(result, tmp_path, pictures_of(samples), compared)
    light, dark = (opened(browser, file, scheme=scheme, width=390) for scheme in ("light", "dark"))
    colours = [
        o.page.evaluate("getComputedStyle(document.body).backgroundColor") for o in (light, dark)
    ]
    assert colours[0] == "rgb(255, 255, 255)"
    assert sum(map(int, colours[1][4:-1].split(", "))) < 150
    page = dark.page
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing sticks out"
    image = next(
        b for a, b in zip(first.images, result.images, strict=True) if a.status != b.status == "ok"
    )
    page.goto(f"{file.as_uri()}#image={image.image_id}")
    expect(page.locator(".panel h3").nth(1)).to_have_text("A: before")
    expect(page.locator(".panel h3").nth(2)).to_have_text("B: after")
    found = page.locator(".panel").first.locator(".triplets .hit")
    assert found.count() == sum(r.verdict == "hit" for r in image.reference.relations)
    page.select_option("#judge", "0")
    assert page.locator(".panel").first.locator(".triplets .hit").count() == 0, "A has no graph"
    change = next(d for d in compared.differences if d.metric == "recall@20")
    assert change.difference is not None
    assert change.difference > 0.1
    row = page.locator("#comparison tbody tr").first
    expect(row).to_contain_text(f"{100 * (change.second or 0):.2f}")
    expect(row).to_contain_text(f"{100 * change.difference:+.2f}")
    page.select_option("#order", "gain")
    page.keyboard.press("Escape")
    gains = {
        b.image_id: (b.f1 or 0) - (a.f1 or 0)
        for a, b in zip(first.images, result.images, strict=True)
    }
    shown = [gains[name] for name in page.locator("#grid b").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] > shown[-1]
    for each in (light, dark):
        assert not each.complaints
        each.page.context.close()


def test_hostile_names_are_only_text(
    browser: Browser, result: EvaluationResult, tmp_path: Path
) -> None:
    """Also an image without a picture, objects without a box, and a relation of one with itself."""
    hostile = "</script><script>document.title = 'taken'</script> a+b&c=d#e\"<img src=x>\u2028"
    boxes = [(0.0, 0.0, 9.0, 9.0), (float("nan"), 0.0, 1.0, 1.0), (5.0, 5.0, 5.0, 1e30)]
    predicted = DrawnGraph(
        objects=[DrawnObject(name=hostile, bbox=box, verdict="hallucination") for box in boxes],
        relations=[
            DrawnRelation(subject=s, predicate=hostile, object=o, verdict="hallucination")
            for s, o in ((0, 0), (0, 1), (2, 0), (2, 2))
        ],
    )
    image = replace(
        result.images[0], image_id=hostile, status=hostile, text=hostile, predicted=predicted
    )
    file = write_report(
        replace(result, name=hostile, images=[image]), tmp_path, lambda _: b"no picture"
    )
    report = opened(browser, file)
    page = report.page
    page.select_option("#predicate", hostile)
    page.locator("#grid a").click()
    expect(page.locator("#viewer h3").first).to_contain_text("<img src=x>")
    expect(page.locator("#viewer pre")).to_contain_text(hostile.strip())
    assert page.locator(".drawing").nth(1).locator(".relation path.line").count() == 3
    assert page.locator("img").count() == 0
    page.reload()
    expect(page.locator("#viewer h3").first).to_contain_text("<img src=x>")
    assert page.title().startswith("</script>")
    assert not report.complaints
    page.context.close()
