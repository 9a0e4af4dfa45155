"""The names that a closed-vocabulary run may use."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names in the order of their usual indices, which start at 0 here.

    Example: `load_vocabulary("vg150").predicates[0] == "above"`
    """

    objects: tuple[str, ...]
    predicates: tuple[str, ...]


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """A shipped vocabulary: `vg150` or `psg`."""
    lists = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
    return Vocabulary(tuple(lists["objects"]), tuple(lists["predicates"]))
