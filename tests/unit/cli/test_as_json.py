"""What `--json` prints of numbers that JSON does not have."""

import json
import math
from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from cli.views.as_json import print_json


class _Message(BaseModel):
    loss: float
    more: dict[str, list[float]]


@dataclass
class _Plain:
    loss: float
    inside: _Message


MESSAGE = _Message(loss=math.nan, more={"a": [math.inf, 1.5]})
SHOWN = {"loss": None, "more": {"a": [None, 1.5]}}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (MESSAGE, SHOWN),
        (_Plain(-math.inf, MESSAGE), {"loss": None, "inside": SHOWN}),
        ({"x": math.nan, "m": [MESSAGE]}, {"x": None, "m": [SHOWN]}),
        ({"text": "\x1b\ud800", "number": 10**30}, {"text": "\x1b\ud800", "number": 10**30}),
    ],
)
def test_numbers_that_are_not_finite_are_null(
    value: object, shown: object, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(value)
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == shown
    assert out.replace("\n", "").isprintable()
