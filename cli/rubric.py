"""The rubric that a command is given: a name, or a file with one and with terms of its own."""

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.errors import InvalidInputError, SettingsError

if TYPE_CHECKING:
    from reward_service.similarity.registry import Similarities

_OF_A_RUN = {"reward", "run", "model", "data", "trainer"}
"""Tables by which the settings of a run are known from a rubric"""
Wanted = str | dict[str, Any]


def load_rubric(
    wanted: str, folder: Path | None, terms: list[str], *, option: str
) -> tuple[Wanted, "Similarities"]:
    """What `make_scorer` needs; terms are loaded.

    Args:
        wanted: A name, or a .toml or .json file with a rubric, or with a run's settings.
        folder: Holds the tables of `table:` similarities.
        terms: Terms of one's own beside those that the file names.
        option: What `wanted` was given as, for messages.

    Raises:
        SettingsError: The rubric, its similarity or a term is unknown or wrong.
    """
    from reward_service.own_terms import check_weighed, load_own_terms
    from reward_service.rubrics import find_rubric
    from reward_service.similarity.registry import Similarities

    is_file = Path(wanted).suffix in (".toml", ".json")
    found, of_file = _read_rubric(Path(wanted), option) if is_file else (wanted, [])
    load_own_terms([*of_file, *terms])
    with named_in_errors(option):
        rubric = find_rubric(found)
        # Who runs this command may load any model that the rubric asks for.
        kind, _, model = rubric.similarity.partition(":")
        similarities = Similarities(folder, [model] if kind == "embedding" else [])
    check_weighed(terms, rubric, setting="--term")
    return found, similarities


@contextmanager
def named_in_errors(option: str) -> Iterator[None]:
    """Errors about a request's rubric name the option that it was given as."""
    try:
        yield
    except InvalidInputError as error:
        text = error.message.replace("body.rubric", option, 1)
        message = text if text != error.message else f"{option}: {text}"
        raise SettingsError(message) from error


def _read_rubric(file: Path, option: str) -> tuple[str | dict[str, Any], list[str]]:
    """The rubric of a file, and the terms of one's own that the file of a run names."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        value = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SettingsError(f"{option}: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(
            f"{option}: {file} is not {file.suffix[1:].upper()}: {error}"
        ) from error
    if isinstance(value, dict) and _OF_A_RUN & value.keys():
        from services.settings.parts import RewardSettings

        default = RewardSettings.model_fields["rubric"].default
        reward = value.get("reward")
        reward = reward if isinstance(reward, dict) else {}
        value, terms = reward.get("rubric", default), reward.get("terms", [])
    else:
        terms = []
    if not isinstance(value, dict | str):
        raise SettingsError(f"{option}: {file} is not a rubric: it has no terms")
    if not isinstance(terms, list):
        raise SettingsError(f"{option}: {file}: reward.terms is a list")
    return value, [str(term) for term in terms]
