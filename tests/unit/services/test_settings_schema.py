"""The JSON Schema of a run's TOML, as an editor uses it: line by line, without our own checks."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from typer.testing import CliRunner

from cli.main import app
from services.settings.schema import settings_schema

ROOT = Path(__file__).parents[3]
RUNS = [file for file in sorted(ROOT.glob("configs/**/*.toml")) if file.parent.name != "clusters"]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(settings_schema())


@pytest.mark.parametrize("file", RUNS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_of_configs_is_right(file: Path, validator: Draft202012Validator) -> None:
    validator.validate(tomllib.loads(file.read_text()))


@pytest.mark.parametrize(
    ("tree", "where", "said"),
    [
        ({"trainr": {}}, [], "'trainr' was unexpected"),
        ({"trainer": {"num_step": 3}}, ["trainer"], "'num_step' was unexpected"),
        ({"trainer": {"group_size": 1}}, ["trainer", "group_size"], "less than the minimum of 2"),
        ({"algorithm": {"loss": "ppo"}}, ["algorithm", "loss"], "is not one of ['grpo', 'bnpo'"),
        ({"data": {"train": 3}}, ["data", "train"], "is not of type 'string'"),
        ({"run": {"name": "../x"}}, ["run", "name"], "does not match"),
        ({"extends": "base.toml"}, ["extends"], "is not of type 'array'"),
    ],
)
def test_what_is_wrong_is_underlined(
    tree: dict[str, Any], where: list[str], said: str, validator: Draft202012Validator
) -> None:
    (error,) = validator.iter_errors(tree)
    assert list(error.path) == where
    assert said in error.message


def test_every_setting_says_what_it_means() -> None:
    """The docstring under a field is what an editor and the site show."""
    schema = settings_schema()
    assert [
        f"{name}.{field}"
        for name, section in schema["$defs"].items()
        for field, found in section["properties"].items()
        if not found.get("description")
    ] == []
    group_size = schema["$defs"]["TrainerSettings"]["properties"]["group_size"]
    assert group_size["description"] == "Completions of one prompt."


def test_the_command_prints_it() -> None:
    printed = CliRunner().invoke(app, ["settings", "schema"]).stdout
    assert json.loads(printed) == settings_schema()
