"""Pages of groups, of a run that the real writer wrote."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from console.app import create_console
from scene_data.dataset import open_dataset
from services.host.ports import free_port
from tests.rollout_runs import as_an_earlier_release, write_run

SCRIPT = "</script><script>alert('x')</script>\x1b[2J‮\"' onload=\"alert(1)"
HOSTILE = json.dumps(
    {
        "objects": [
            {"id": f"{SCRIPT}.1", "bbox": [0, 0, 500, 500]},
            {"id": "x" * 3000 + ".1", "bbox": [-1e300, 0, 1e300, 9]},
        ],
        "relationships": [
            {"subject": f"{SCRIPT}.1", "predicate": SCRIPT, "object": "x" * 3000 + ".1"}
        ],
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    nobody = {"url": f"http://127.0.0.1:{free_port()}"}
    write_run(folder, num_steps=3, num_groups=4, extra=[HOSTILE, SCRIPT], rollout=nobody)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(create_console(folder / "runs"), base_url="http://127.0.0.1") as client:
        yield client


def names(html: str) -> list[str]:
    return re.findall(r'class="open" href="[^"]*">([^<]+)<', html)


def test_newest_groups_come_first_a_page_at_a_time(client: TestClient) -> None:
    first = client.get("/runs/toys/rollouts").text
    assert names(first)[:3] == ["toys-dead", "toys-e2-r3", "toys-e2-r2"]
    (more,) = re.findall(r'rel="next" href="([^"]+)"', first)
    second = client.get(unescape(more), headers={"HX-Request": "true"}).text
    assert "<html" not in second, "only the list"
    assert not set(names(first)) & set(names(second))
    assert len(names(first)) + len(names(second)) == 3 * 4 + 3


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("state=dead", ["toys-dead"]),
        ("state=stale", ["toys-e0-r4"]),
        ("step_to=0&sort=oldest", [f"toys-e0-r{row}" for row in range(4)]),
        ("status=schema_violation", []),
        ("text=ONLOAD", ["toys-extra"]),
        ("step_from=2&object=blue+ghost&status=odd", None),
        ("step_from=7", []),
    ],
)
def test_filters_of_the_address_hold(
    client: TestClient, query: str, wanted: list[str] | None
) -> None:
    page = client.get(f"/runs/toys/rollouts?{query}")
    assert page.status_code == 200
    if wanted is None:
        assert "status is one of ok, no_answer" in unescape(page.text)
        assert "toys-extra" not in names(page.text)
    else:
        assert names(page.text) == wanted


def test_an_opened_group_has_its_graphs_text_tokens_and_reasons(client: TestClient) -> None:
    page = client.get("/runs/toys/rollouts/toys-e0-r0?step=0&completion=2").text
    (data,) = re.findall(r'data-graphs="([^"]+)"', page)
    drawn = json.loads(unescape(data))
    assert list(drawn["graphs"]) == ["difference", "completion", "reference"]
    assert (drawn["width"], drawn["height"]) == (112, 112)
    assert client.get(drawn["picture"]).headers["content-type"] == "image/jpeg"
    flow = page.partition('class="tokens flow"')[2].partition("</div>")[0]
    text = unescape("".join(re.findall(r"<span[^>]*>([^<]*)</span>", flow)))
    assert text.startswith('<answer>{"objects": [{"id": "'), "token by token, as it was sampled"
    assert "v0</b>" in flow
    assert "v1</b>" in flow
    assert 'clipped"' in flow
    assert "triplet_f1" in page
    assert "bad.1" in page, "what was dropped is said"
    assert "aria-current" in page


def test_a_run_in_the_compact_notation_is_found_and_drawn(tmp_path: Path) -> None:
    write_run(tmp_path, num_steps=1, num_groups=2, data={"notation": "compact"})
    with TestClient(create_console(tmp_path / "runs"), base_url="http://127.0.0.1") as client:
        listed = client.get("/runs/toys/rollouts?object=blue+ghost&state=trained").text
        assert names(listed)
        page = client.get(f"/runs/toys/rollouts/{names(listed)[0]}?step=0&completion=1").text
    (data,) = re.findall(r'data-graphs="([^"]+)"', page)
    assert json.loads(unescape(data))["graphs"]["completion"]["objects"]
    marked = re.findall(r'<mark class="[^"]*"[^>]*>([^<]*)<', page)
    assert any(re.fullmatch(r"[A-Z] [a-z ]+( [0-9]+){4}\s*", unescape(text)) for text in marked)


def test_a_picture_over_time(client: TestClient) -> None:
    listed = client.get("/runs/toys/rollouts?step_to=0&sort=oldest").text
    url = re.findall(r'href="([^"]+/over-time)"', listed)[0]
    page = client.get(url).text
    assert names(page) == ["step 0", "step 1", "step 2", "step 2"], "the last one is toys-extra"
    assert page.count('class="dot"') == 4


def test_what_is_gone_is_said_and_the_rest_is_shown(folder: Path, client: TestClient) -> None:
    dead = client.get("/runs/toys/rollouts/toys-dead").text
    assert "the image cannot be read" in dead
    (folder / "runs/toys/rollouts/step-000001.rank0.jsonl.gz").unlink()
    listed = client.get("/runs/toys/rollouts?step_from=1&step_to=1").text
    assert len(names(listed)) == 4
    assert listed.count("are gone: a run keeps those of its newest steps") == 4
    assert "are gone" in client.get("/runs/toys/rollouts/toys-e1-r0?step=1").text
    picture = client.get(f"/runs/toys/images/{'0' * 64}?row=1")
    assert picture.status_code == 404
    assert "this picture is gone" in unescape(picture.text)
    assert client.get("/runs/toys/images/..%2F..%2Fconfig.toml").status_code == 404
    assert client.get("/runs/toys/rollouts/nobody").status_code == 404


def test_a_record_of_an_earlier_release_is_only_read(folder: Path, client: TestClient) -> None:
    as_an_earlier_release(folder / "runs/toys")
    file = folder / "runs/toys/rollouts/step-000000.rank0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    old = {**json.loads(lines[1]), "reference": None}
    lines[1] = json.dumps(old, separators=(",", ":")).encode().ljust(len(lines[1]) - 1) + b"\n"
    file.write_bytes(b"".join(lines))
    page = client.get("/runs/toys/rollouts/toys-e0-r1?step=0").text
    assert "This record has no reference" in page
    assert list(json.loads(unescape(re.findall(r'data-graphs="([^"]+)"', page)[0]))["graphs"]) == [
        "completion"
    ]
    assert "object_precision" in page, "its terms were recorded"


def test_a_damaged_record_is_one_row_of_the_list(folder: Path, client: TestClient) -> None:
    as_an_earlier_release(folder / "runs/toys")
    file = folder / "runs/toys/rollouts/step-000000.rank0.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert b"[112,112]" in lines[2]
    lines[2] = lines[2].replace(b"[112,112]", b"[0,0]    ")
    one = re.compile(rb'("rollout_logprobs":\[)([^,\]]*,)')
    lines[3] = one.sub(lambda m: m[1] + b" " * len(m[2]), lines[3], count=1)
    file.write_bytes(b"".join(lines))
    for page in ("?sort=oldest", "?text=a&step_to=0", "/toys-e0-r2?step=0", "/toys-e0-r3?step=0"):
        assert client.get(f"/runs/toys/rollouts{page}").status_code == 200
    listed = client.get("/runs/toys/rollouts?sort=oldest").text
    assert names(listed)[:4] == [f"toys-e0-r{row}" for row in range(4)]
    assert listed.count("is cut or damaged: Input should be greater than or equal to 1") == 1
    assert "completion 0 has" in listed


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 4000, "²", "-1", "1_0", "1.5"])
def test_numbers_of_the_address_that_are_none(client: TestClient, number: str) -> None:
    group = "/runs/toys/rollouts/toys-e2-r0"
    assert client.get(group, params={"step": number}).status_code == 422
    opened = client.get(group, params={"completion": number})
    assert (opened.status_code, opened.text.count('aria-current="true"')) == (200, 1)
    listed = unescape(client.get("/runs/toys/rollouts", params={"step_from": number}).text)
    assert f"step from is a whole number, not {number[:40]!r}" in listed


@pytest.mark.parametrize("completion", [0, 1])
def test_hostile_texts_are_only_text(client: TestClient, completion: int) -> None:
    pages = [
        client.get(f"/runs/toys/rollouts/toys-extra?completion={completion}"),
        client.get("/runs/toys/rollouts"),
        client.get("/runs/toys/rollouts", params={"predicate": SCRIPT[:36], "sort": SCRIPT[:36]}),
    ]
    for page in pages:
        assert page.status_code == 200
        assert "<script>alert" not in page.text
        assert "\x1b" not in page.text
        assert "‮" not in page.text
        assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', page.text))
        assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "alert(&#39;x&#39;)" in pages[0].text or "alert(\\u0027x" in pages[0].text


def test_try_it_says_what_is_wrong(folder: Path, client: TestClient) -> None:
    files = {"image": ("a.png", b"no picture")}
    htmx = {"HX-Request": "true"}
    assert client.post("/try", data={"run": "toys"}, files=files).status_code == 422
    answer = client.post(
        "/try", data={"run": "toys", "reference": "{"}, files=files, headers=htmx
    ).text
    assert "the reference is no graph" in answer
    faults = [({}, "there is no picture"), ({"image": ("", b"")}, "there is no picture")]
    faults += [
        ({"image": ("a.png", b"")}, "its file is empty"),
        (files, "not an image of the formats"),
    ]
    for sent, fault in faults:
        answer = client.post("/try", data={"run": "toys"}, files=sent, headers=htmx).text
        assert fault in answer
        assert "No rollout server" not in answer
    files = {"image": ("a.png", open_dataset(folder / "data/train.parquet")[0].image_bytes)}
    answer = client.post("/try", data={"run": "toys"}, files=files, headers=htmx).text
    assert "No rollout server of toys answers" in answer
    assert "sgg-rl serve rollout --config" in answer
