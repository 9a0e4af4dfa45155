import json
from pathlib import Path

import pytest

from scene_data.templates import prompt_messages
from scene_data.vocabulary import load_vocabulary
from scene_graph.boxes import RELATIVE_1000
from services.errors import InvalidInputError
from services.schemas.common import TextPart
from tests.shared_data import SHARED_DATA


@pytest.mark.parametrize(("name", "objects", "predicates"), [("vg150", 150, 50), ("psg", 133, 56)])
def test_sizes_and_no_name_twice(name: str, objects: int, predicates: int) -> None:
    found = load_vocabulary(name)
    assert (len(found.objects), len(found.predicates)) == (objects, predicates)
    assert len(set(found.objects)) == objects
    assert len(set(found.predicates)) == predicates


def test_an_object_cannot_have_a_dot(tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"objects": ["man", "u.s. flag"], "predicates": ["on"]}))
    with pytest.raises(InvalidInputError, match=r"'u\.s\. flag'.*ends at its first dot"):
        load_vocabulary(str(file))


def test_closed_prompt_lists_every_name() -> None:
    (message,) = prompt_messages("closed", RELATIVE_1000, "psg")
    (text,) = [part.text for part in message.content if isinstance(part, TextPart)]
    names = load_vocabulary("psg")
    assert ", ".join(names.objects) in text
    assert ", ".join(names.predicates) in text
    (open_message,) = prompt_messages("open", RELATIVE_1000)
    (open_text,) = [part.text for part in open_message.content if isinstance(part, TextPart)]
    assert text.startswith(open_text)


def test_vg150_is_that_of_the_benchmark() -> None:
    file = SHARED_DATA / "vocab/VG-SGG-dicts-with-attri.json"
    if not file.is_file():
        pytest.skip("the benchmark's dictionary is not here")
    published = json.loads(file.read_text())
    found = load_vocabulary("vg150")
    assert list(found.objects) == [published["idx_to_label"][str(i)] for i in range(1, 151)]
    assert list(found.predicates) == [published["idx_to_predicate"][str(i)] for i in range(1, 51)]
