"""`POST /v1/scene-graphs` on real uvicorn and real Redis, with the fake engine."""

import base64
import io
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from PIL import Image

from rollout_service.fake.engine import FakeEngine
from rollout_service.http import examples
from scene_graph.boxes import RELATIVE_1000
from scene_graph.parsing import parse_completion
from services.errors import InvalidInputError
from services.http.clients.rollout import RolloutClient
from services.images import ImageStore, decode_image
from services.schemas.rollouts import InlineImage
from services.schemas.scene_graphs import (
    ImageError,
    ImageGraph,
    SceneGraphRequest,
    SceneGraphResponse,
)
from tests.live_servers import LiveServer, cluster_settings, serving
from tests.tagged_pictures import encoded, exif, noise, png_header, tagged

PATH = "/v1/scene-graphs"
TOKEN = {"Authorization": "Bearer data-secret"}
PHOTO = tagged(noise(90, 60), 6, "JPEG")
"""Upright 60 wide and 90 high"""
UNKNOWN = {"sha256": "0" * 64, "num_bytes": 9}
NO_PICTURE = base64.b64encode(b"a text").decode()
TOO_MANY_PIXELS = base64.b64encode(png_header(10_000, 8_000)).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[LiveServer]:
    run = f"test-{uuid.uuid4().hex[:12]}"
    settings = cluster_settings(tmp_path_factory.mktemp("run"), run, redis_url, "disk")
    settings = settings.changed(data={"template": "toy"})
    with serving(settings, FakeEngine(tokens_per_s=1e7, max_model_len=4096)) as live:
        yield live


def text_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def pictures() -> list[bytes]:
    """Some of each kind, of different sizes."""
    return [PHOTO, *(encoded(Image.fromarray(noise(20 + 8 * i, 33, i))) for i in range(12))]


def post(server: LiveServer, **request: Any) -> httpx.Response:
    headers = TOKEN | request.pop("headers", {})
    return httpx.post(server.url + PATH, headers=headers, trust_env=False, timeout=30, **request)


def asked(server: LiveServer, *images: dict[str, Any], **options: Any) -> SceneGraphResponse:
    answer = post(server, json={"images": images, **options})
    assert answer.status_code == 200, answer.text
    return SceneGraphResponse.model_validate_json(answer.content)


def graphs(answer: SceneGraphResponse) -> list[ImageGraph]:
    found = [one for one in answer.graphs if isinstance(one, ImageGraph)]
    assert len(found) == len(answer.graphs)
    return found


def test_boxes_are_pixels_of_the_upright_picture(server: LiveServer) -> None:
    images = pictures()
    answer = asked(server, *({"data": text_of(image)} for image in images), text=True)
    assert answer.task == "sgg"
    found = graphs(answer)
    for image, graph in zip(images, found, strict=True):
        size = decode_image(image).size
        assert (graph.width, graph.height) == size
        parsed = parse_completion(graph.text or "", RELATIVE_1000)
        assert (graph.status, graph.truncated) == (parsed.status, parsed.truncated)
        scaled = parsed.graph.scaled(*size)
        assert [(item.id, item.bbox) for item in graph.objects] == [
            (item.id, item.bbox) for item in scaled.objects
        ]
        assert [one.predicate for one in graph.relationships] == [
            one.predicate for one in scaled.relationships
        ]
        assert graph.confidence is not None
        assert 0.9 < graph.confidence < 1
        assert graph.policy_versions == (0, 0)
    assert found[0].status == "ok"
    assert {"ok", "invalid_json"} == {graph.status for graph in found}
    assert all((graph.fault is None) == (graph.status == "ok") for graph in found)


def test_a_picture_comes_in_any_form(server: LiveServer) -> None:
    ref = ImageStore(server.settings.run.files.images).put(PHOTO)
    (wanted,) = graphs(asked(server, {"data": text_of(PHOTO)}))
    assert (wanted.text, wanted.svg) == (None, None)
    uri = f"data:image/jpeg;base64,{text_of(PHOTO)}"
    assert graphs(asked(server, ref.model_dump(), {"data": uri})) == [wanted, wanted]
    lines = base64.encodebytes(PHOTO).decode()
    for text in (lines, f"DATA:IMAGE/JPEG;BASE64,{lines}"):
        body = b'{\n"images": [{"data": "%s"}]\n}' % text.encode()
        sent = post(server, content=body, headers={"Content-Type": "application/json"})
        assert graphs(SceneGraphResponse.model_validate_json(sent.content)) == [wanted]
    heic = {"data": text_of(encoded(Image.open(io.BytesIO(PHOTO)), "HEIF", exif=exif(6)))}
    (phone,) = graphs(asked(server, heic))
    assert (phone.width, phone.height) == (60, 90)
    form = post(server, files=[("images", PHOTO), ("images", ("photo.jpg", PHOTO))])
    assert graphs(SceneGraphResponse.model_validate_json(form.content)) == [wanted, wanted]


def test_curl_sends_a_file(server: LiveServer, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    command = ["curl", "-sSf", "-H", "Authorization: Bearer data-secret", server.url + PATH]
    command += ["-F", "images=@photo.jpg", "-F", "max_tokens=4", "-F", "text=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    (graph,) = graphs(SceneGraphResponse.model_validate_json(done.stdout))
    assert (graph.num_tokens, graph.finish_reason, graph.text) == (4, "length", '{"ob')
    assert (graph.status, graph.fault) == ("invalid_json", "the answer stops inside its JSON")


def test_a_bad_picture_does_not_spoil_the_others(server: LiveServer) -> None:
    good = {"data": text_of(PHOTO)}
    bad: list[dict[str, Any]] = [
        {"data": NO_PICTURE},
        {"data": TOO_MANY_PIXELS},
        UNKNOWN,
        {"data": "%"},
    ]
    found = asked(server, good, *bad, good).graphs
    assert found[0] == found[-1] == graphs(asked(server, good))[0]
    problems = [one.error for one in found[1:-1] if isinstance(one, ImageError)]
    assert [problem.status for problem in problems] == [422, 413, 404, 422]
    for problem, words in zip(
        problems, ("not an image", "over 64,000,000 pixels", "0000", "not base64"), strict=True
    ):
        assert words in problem.detail
        assert (problem.retryable, problem.type[:8]) == (False, "urn:sgg:")


def form(*images: bytes, **fields: Any) -> dict[str, Any]:
    return {"files": [("images", image) for image in images], "data": fields}


JSON_BODY = {"headers": {"Content-Type": "application/json"}}
REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"json": {"images": [{"data": NO_PICTURE}]}}, 422, "not an image"),
    ({"json": {"images": [{"data": TOO_MANY_PIXELS}]}}, 413, "10000x8000"),
    ({"json": {"images": [UNKNOWN]}}, 404, "0000"),
    ({"json": {"images": [{"data": "%"}]}}, 422, "not base64"),
    ({"json": {"images": [{"data": "http://127.0.0.1/a.png"}]}}, 422, "never fetched"),
    ({"json": {"images": [{"data": "data:text/html;base64,AAAA"}]}}, 422, "data:image"),
    ({"json": {"images": []}}, 422, "body.images: List should have at least 1 item"),
    ({"json": {}}, 422, "body.images: Field required"),
    ({"json": {"images": [UNKNOWN] * 17}}, 422, "at most 16 items"),
    ({"json": {"images": [UNKNOWN], "prompt": "x"}}, 422, "body.prompt: Extra inputs"),
    ({"json": {"images": [UNKNOWN], "temperature": 3}}, 422, "body.temperature"),
    ({"json": {"images": [UNKNOWN], "draw": "png"}}, 422, "body.draw"),
    ({"json": {"images": [{"data": text_of(PHOTO)}], "adapter": "a"}}, 422, "adapter"),
    ({"json": {"images": [{"data": "A" * 9_000_000}]}}, 413, "over 8388608 bytes"),
    ({"content": b"[" * 40, "headers": {"Content-Type": "application/json"}}, 422, "nested"),
    ({"content": PHOTO, "headers": {"Content-Type": "image/jpeg"}}, 415, "multipart/form-data"),
    ({"data": {"images": "x"}}, 415, "multipart/form-data"),
    (form(PHOTO) | {"params": {"draw": "svg"}}, 422, "not of the URL"),
    ({"content": b""}, 415, "multipart/form-data"),
    (form(b"a text"), 422, "not an image"),
    (form(png_header(10_000, 8_000)), 413, "10000x8000"),
    (form(b""), 422, "no bytes"),
    (form(*[PHOTO] * 17), 422, "Too many files. Maximum number of files is 16."),
    (form(PHOTO, text="x" * 5_000), 422, "maximum size of 4KB"),
    (form(PHOTO, temperature="hot"), 422, "body.temperature"),
    (form(PHOTO, max_tokens=["3", "4"]), 422, "body.max_tokens"),
    (form(PHOTO, prompt="x"), 422, "body.prompt: Extra inputs"),
    (form(PHOTO, **{f"a{i}": "x" for i in range(40)}), 422, "Too many fields"),
    ({"files": {"image": PHOTO}}, 422, "body.images: Field required"),
    ({"files": {"images": (None, "hello")}}, 422, "curl -F images=@photo.jpg"),
    ({"files": [("images", PHOTO), ("images", (None, "x"))]}, 422, "curl -F images=@photo.jpg"),
    ({"content": b'{"images": "a\n'} | JSON_BODY, 422, "Invalid JSON"),
    (form(PHOTO) | {"headers": {"Origin": "http://evil.example"}}, 403, "another origin"),
    ({"content": b"x", "headers": {"Content-Type": "multipart/form-data"}}, 422, "boundary"),
    (
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
        422,
        "cannot be read",
    ),
    (
        {
            "content": b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\r\n--b--\r\n',
            "headers": {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"},
        },
        422,
        "cannot be read",
    ),
]


def test_what_the_page_shows_works(server: LiveServer) -> None:
    """The examples as they stand; and the form from a page of the service itself."""
    for path, example in ((PATH, examples.SCENE_GRAPHS), ("/v1/rollouts", examples.ROLLOUTS)):
        answer = httpx.post(f"{server.url}{path}", json=example, headers=TOKEN, trust_env=False)
        assert answer.status_code == 200, answer.text
    own = post(server, **form(PHOTO, temperature="", seed=""), headers={"Origin": server.url})
    assert own.status_code == 200, own.text


@pytest.mark.parametrize(("request_", "status", "words"), REFUSED)
def test_what_is_refused(
    server: LiveServer, request_: dict[str, Any], status: int, words: str
) -> None:
    answer = post(server, **request_)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_it_asks_for_the_token(server: LiveServer) -> None:
    assert post(server, **form(PHOTO), headers={"Authorization": "Bearer x"}).status_code == 401


def test_a_drawing_is_a_file_of_its_own(server: LiveServer) -> None:
    (graph,) = graphs(asked(server, {"data": text_of(PHOTO)}, draw="svg"))
    root = ElementTree.fromstring(graph.svg or "")
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert names <= {"svg", "g", "rect", "image", "path", "circle", "title", "text"}
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == [item.id.partition(".")[0] for item in graph.objects]
    (image,) = root.iter("{http://www.w3.org/2000/svg}image")
    kind, _, data = image.attrib["href"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (60, 90)


def test_sampling_is_greedy_where_nothing_is_said(server: LiveServer) -> None:
    image = {"data": text_of(PHOTO)}
    greedy = asked(server, image, text=True).graphs
    assert asked(server, image, text=True, seed=3, temperature=0).graphs == greedy
    hot = [asked(server, image, text=True, temperature=1, seed=seed).graphs for seed in range(4)]
    assert asked(server, image, text=True, temperature=1, seed=2).graphs == hot[2]
    assert len({str(one) for one in hot}) > 1


def test_a_schema_comes_after_the_free_answer(server: LiveServer) -> None:
    images = [{"data": text_of(image)} for image in pictures()]
    free = [graph.status for graph in graphs(asked(server, *images))]
    every = graphs(asked(server, *images, constrain="all"))
    assert [graph.unconstrained_status for graph in every] == free
    failed = graphs(asked(server, *images, constrain="failures"))
    assert [graph.unconstrained_status for graph in failed] == [
        None if status == "ok" else status for status in free
    ]


def test_graphs_without_boxes(tmp_path: Path, redis_url: str) -> None:
    run = f"test-{uuid.uuid4().hex[:12]}"
    settings = cluster_settings(tmp_path, run, redis_url, "disk")
    settings = settings.changed(data={"task": "cls"})
    with serving(settings, FakeEngine(tokens_per_s=1e7, max_model_len=4096)) as live:
        (graph,) = graphs(asked(live, {"data": text_of(PHOTO)}))
        refused = post(live, json={"images": [{"data": text_of(PHOTO)}], "draw": "svg"})
    (triplet,) = graph.relationships
    assert [(item.id, item.bbox) for item in graph.objects] == [
        (triplet.subject, None),
        (triplet.object, None),
    ]
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "body.draw")


async def test_the_client(server: LiveServer) -> None:
    image, text = InlineImage(data=text_of(PHOTO)), InlineImage(data=NO_PICTURE)
    async with RolloutClient(server.url, token="data-secret", timeout_s=30) as client:
        answer = await client.scene_graphs(SceneGraphRequest(images=[image, text]))
        assert answer.server_id == (await client.policy()).server_id
        assert isinstance(answer.graphs[0], ImageGraph)
        assert isinstance(answer.graphs[1], ImageError)
        with pytest.raises(InvalidInputError, match="not an image"):
            await client.scene_graphs(SceneGraphRequest(images=[text]))
