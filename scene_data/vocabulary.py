"""The names that a closed-vocabulary run may use, and other names for them."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from scene_graph.graph import normalise_name

_FOLDER = Path(__file__).parent / "vocabularies"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Names in the order of their usual indices, which start at 0 here.

    Example: `load_vocabulary("vg150").predicates[0] == "above"`
    """

    objects: tuple[str, ...]
    predicates: tuple[str, ...]

    def normalised(self) -> "Vocabulary":
        """With names as graphs are compared: PSG's `floor-wood` is `floor wood`."""
        return Vocabulary(
            tuple(map(normalise_name, self.objects)), tuple(map(normalise_name, self.predicates))
        )


@dataclass(frozen=True, slots=True)
class Aliases:
    """Other names for a vocabulary's, both normalised.

    Example: `load_aliases("psg").objects["sky"] == "sky other merged"`
    """

    objects: dict[str, str]
    predicates: dict[str, str]


@cache
def load_vocabulary(name: str) -> Vocabulary:
    """A shipped vocabulary: `vg150` or `psg`."""
    lists = tomllib.loads((_FOLDER / f"{name}.toml").read_text())
    return Vocabulary(tuple(lists["objects"]), tuple(lists["predicates"]))


def load_aliases(name: str) -> Aliases:
    """The shipped aliases of a vocabulary: plurals, other spellings, clear synonyms."""
    lists = tomllib.loads((_FOLDER / f"{name}-aliases.toml").read_text())
    return Aliases(_by_alias(lists["objects"]), _by_alias(lists["predicates"]))


def _by_alias(lists: dict[str, list[str]]) -> dict[str, str]:
    return {
        normalise_name(alias): normalise_name(name)
        for name, aliases in lists.items()
        for alias in aliases
    }
