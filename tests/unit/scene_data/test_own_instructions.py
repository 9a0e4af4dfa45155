"""Vocabularies and instructions of one's own, by path."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.evaluate_files import Request, run_evaluation
from scene_data.templates import check_instruction, instruction_digest, prompt_messages
from scene_data.vocabulary import Aliases, Vocabulary, load_aliases, load_vocabulary
from scene_graph.boxes import RELATIVE_1000, BoxSpace
from services.errors import InvalidInputError, SettingsError
from services.schemas.common import TextPart
from services.settings import load_settings
from tests.raw_annotations import converted, picture, put

OWN = Vocabulary(("man", "traffic light"), ("on", "next to"))

FORMS: dict[str, Any] = {
    "own.json": {"objects": list(OWN.objects), "predicates": list(OWN.predicates)},
    "own.toml": 'objects = ["man", "traffic light"]\npredicates = ["on", "next to"]\n',
    "own.txt": "\ufeff[objects]\nman\n traffic light \n\n[Predicates]\r\non\nnext to\n",
    "VG-SGG-dicts.json": {
        "idx_to_label": {"1": "man", "2": "traffic light"},
        "idx_to_predicate": {"2": "next to", "1": "on"},
        "predicate_count": {},
    },
    "inverse.json": {
        "label_to_idx": {"traffic light": 2, "man": 1, "__background__": 0},
        "predicate_to_idx": {"on": 1, "next to": 2},
    },
    "psg.json": {
        "thing_classes": ["man"],
        "stuff_classes": ["traffic light"],
        "predicate_classes": ["on", "next to"],
        "data": [{"image_id": "1"}],
    },
    "coco.json": {
        "images": [],
        "categories": [{"id": 3, "name": "man"}, {"id": 4, "name": "traffic light"}],
        "rel_categories": ["__background__", "on", "next to"],
    },
    "categories_dict.json": {"obj": ["man", "traffic light"], "rel": ["on", "next to"]},
}


def _put(folder: Path, name: str = "own.json", content: Any = None) -> str:
    content = FORMS[name] if content is None else content
    return str(put(folder / name, content.encode() if isinstance(content, str) else content))


def _asked(*arguments: Any, **options: Any) -> str:
    (message,) = prompt_messages(*arguments, **options)
    return "".join(part.text for part in message.content if isinstance(part, TextPart))


@pytest.mark.parametrize("name", FORMS)
def test_a_vocabulary_is_read_from_any_form(tmp_path: Path, name: str) -> None:
    path = _put(tmp_path, name)
    assert load_vocabulary(path) == OWN
    assert load_aliases(path) == Aliases({}, {})
    text = _asked("closed", RELATIVE_1000, path)
    assert "Use these names for objects, and no others: man, traffic light." in text
    assert "Use these predicates, and no others: on, next to." in text


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.json",
            {"names": []},
            "its members are names; wanted are objects [+] predicates; idx_t",
        ),
        ("b.json", {"objects": ["man"]}, r"predicates is \[null\]; names are wanted"),
        ("c.json", {"objects": ["man", 5], "predicates": ["on"]}, r"objects is \[\[\"man\", 5\]\]"),
        ("d.json", {"objects": ["man", "Man"], "predicates": ["on"]}, "objects has 'man' twice"),
        ("e.json", '{"objects": [', "broken JSON after character"),
        ("f.txt", "man\nhorse\n", r".*above the first section: one name a line below"),
        ("g.toml", "objects = [", "cannot be read .*; a vocabulary is wanted"),
    ],
)
def test_a_vocabulary_that_cannot_be_used_is_refused(
    tmp_path: Path, name: str, content: Any, reason: str
) -> None:
    path = _put(tmp_path, name, content)
    with pytest.raises(InvalidInputError, match=rf"{name}: {reason}.*docs/data.md"):
        load_vocabulary(path)
    with pytest.raises(
        InvalidInputError, match="vg15O: no such vocabulary; vg150, psg or the path"
    ):
        load_vocabulary("vg15O")


def test_an_instruction_is_read_from_a_file_and_filled_in(tmp_path: Path) -> None:
    text = (
        'Write {"objects": []} for $$5.\nNames: $objects.\n${predicates}\nBoxes $boxes.\n$order\n'
    )
    path, names = _put(tmp_path, "own.txt", text), _put(tmp_path)
    assert _asked(path, BoxSpace.pixels(64, 48), names) == (
        'Write {"objects": []} for $5.\nNames: man, traffic light.\non, next to\n'
        "Boxes in pixels of a 64x48 image, whole numbers.\n"
        "Write one JSON object inside <answer> and </answer>, and nothing else:"
    )
    thinking = _asked(path, RELATIVE_1000, names, thinking=True)
    assert "First think inside <think> and </think>" in thinking
    assert "whole numbers from 0 to 1000" in thinking
    plain = _put(tmp_path, "plain.txt", "\ufeffAll objects, please.\n")
    assert _asked(plain, RELATIVE_1000) == "All objects, please."


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Names: $objcts", r"placeholder \$objcts; there are \$boxes, \$order, \$objects, \$pred"),
        ("It costs $ 5", r"a \$ that starts no placeholder; write \$\$ for a dollar"),
        ("  \n", "an empty template; an instruction is wanted"),
    ],
)
def test_an_instruction_that_cannot_be_filled_in_is_refused(
    tmp_path: Path, text: str, reason: str
) -> None:
    path = _put(tmp_path, "own.txt", text)
    with pytest.raises(InvalidInputError, match=rf"own.txt: {reason}.*docs/data.md"):
        check_instruction(path, "vg150")
    with pytest.raises(
        InvalidInputError, match=r"clsoed: no such template .*; data.template is toy"
    ):
        check_instruction("clsoed", None)
    names = _put(tmp_path, "names.txt", "$objects")
    with pytest.raises(InvalidInputError, match=r"\$objects and \$predicates need data.vocabulary"):
        check_instruction(names, None)


def test_the_digest_of_an_instruction_is_that_of_its_files(tmp_path: Path) -> None:
    assert instruction_digest("open", None) is None
    assert instruction_digest("closed", "vg150") is None
    texts = [_put(tmp_path, f"{i}.txt", f"Names: {i} $objects") for i in (1, 2)]
    names, others = (
        _put(tmp_path),
        _put(tmp_path, "x.json", {"objects": ["a"], "predicates": ["b"]}),
    )
    pairs = [(texts[0], names), (texts[1], names), (texts[0], others), ("closed", names)]
    digests = {instruction_digest(*pair) for pair in pairs}
    assert len(digests) == 4
    copy = _put(tmp_path, "copy.txt", "Names: 1 $objects\n")
    assert instruction_digest(copy, names) == instruction_digest(texts[0], names)


def test_settings_name_files_of_instructions(tmp_path: Path) -> None:
    run = ["model.path=m", "data.train=d"]
    template, names = _put(tmp_path, "own.txt", "$objects"), _put(tmp_path)
    data = load_settings(
        [], [*run, f"data.template={template}", f"data.vocabulary={names}"], {}
    ).data
    assert (data.template, data.vocabulary) == (template, names)
    assert load_settings([], [*run, f"data.template={template}"], {}).data.vocabulary is None
    for wrong in (["data.template=closed"], [f"data.vocabulary={names}"]):
        with pytest.raises(SettingsError, match="template = 'closed' and vocabulary go together"):
            load_settings([], [*run, *wrong], {})


def _graph(image_id: str, first: str, predicate: str) -> dict[str, Any]:
    objects = [
        {"id": f"{first}.1", "bbox": [1, 2, 30, 40]},
        {"id": "traffic light.2", "bbox": [5, 6, 20, 21]},
    ]
    edge = {"subject": f"{first}.1", "predicate": predicate, "object": "traffic light.2"}
    return {
        "image_id": image_id,
        "width": 64,
        "height": 48,
        "objects": objects,
        "relationships": [edge],
    }


def test_evaluation_maps_to_a_vocabulary_of_ones_own(tmp_path: Path) -> None:
    references = [_graph("1", "man", "on"), _graph("2", "man", "next to")]
    answers = [_graph("1", "Man", "on"), _graph("2", "guy", "beside")]
    for name, rows in (("reference", references), ("predictions", answers)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    request = Request(
        predictions=tmp_path / "predictions.jsonl",
        reference=str(tmp_path / "reference.jsonl"),
        split="own",
        vocabulary=_put(tmp_path),
        aliases=(put(tmp_path / "aliases.txt", b"man,guy\nnext to,beside\n"),),
    )
    result = run_evaluation(request, tmp_path / "out")
    assert result.protocols["sgb"]["recall@100"] == 1
    assert result.protocols["sgb"]["mean_recall@100"] == 1
    assert result.inputs["vocabulary"] == request.vocabulary


def test_conversion_keeps_the_names_of_ones_own(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture())
    rows = [
        {**_graph("1", "man", "on"), "image": "a.jpg"},
        {**_graph("2", "woman", "on"), "image": "a.jpg"},
    ]
    file = put(tmp_path / "rows.json", rows)
    done = converted(file, tmp_path / "out", vocabulary=_put(tmp_path / "names"))
    assert done.files["rows"].num_images == 1
    assert done.tally.dropped["object_outside_vocabulary"] == 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[objects]\nman, horse\n[predicates]\non\n", "line 2, 'man, horse', is with a comma"),
        ("man\n[objects]\nhorse\n[predicates]\non\n", "line 1, 'man', is above the first section"),
    ],
)
def test_lines_that_are_not_one_name_are_refused(tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(InvalidInputError, match=place):
        load_vocabulary(_put(tmp_path, "own.txt", text))


def test_names_are_without_the_spaces_around_them(tmp_path: Path) -> None:
    lists = {"objects": [" man", "traffic light "], "predicates": ["on", " next to"]}
    assert load_vocabulary(_put(tmp_path, "own.json", lists)) == OWN


def test_an_instruction_that_is_not_utf8_says_so(tmp_path: Path) -> None:
    file = tmp_path / "own.tpl"
    file.write_bytes("Gr\u00f6\u00dfe $boxes".encode("latin-1"))
    with pytest.raises(InvalidInputError, match=r"own.tpl: not UTF-8 text .*; save it as UTF-8"):
        check_instruction(str(file), None)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("The graph as JSON. $order", "asks for JSON, with data.notation = 'compact'"),
        ('Write {"objects": [...]}. $order', "asks for JSON, with data.notation = 'compact'"),
        ("The graph, please.", "without a notation, with data.notation = 'compact'"),
    ],
)
def test_an_instruction_for_another_notation_is_refused(
    tmp_path: Path, text: str, fault: str
) -> None:
    file = put(tmp_path / "own.tpl", text.encode())
    check_instruction(str(file), None)
    with pytest.raises(InvalidInputError, match=rf"own.tpl: .* {fault}.*; write \$order"):
        check_instruction(str(file), None, "compact")


def test_the_order_of_an_own_instruction_has_the_form_of_the_compact_notation(
    tmp_path: Path,
) -> None:
    file = str(put(tmp_path / "own.tpl", b"What is here? $order"))
    text = _asked(file, RELATIVE_1000, notation="compact", thinking=True)
    assert "What is here? First think inside <think>" in text
    assert "<think>...</think>\n<answer>\nobjects\nA name x1 y1 x2 y2\n" in text
    assert "JSON" not in text
