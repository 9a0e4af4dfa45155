"""From annotators' names to a vocabulary's."""

import re
from collections.abc import Iterable
from pathlib import Path

from scene_graph.graph import normalise_name
from services.errors import InvalidInputError

_PUNCTUATION = re.compile(r"[^\w\s]")


class NameMap:
    """Maps names by aliases, then to the spelling of a vocabulary.

    Example: `NameMap(("shoe",))(("Shoe",)) == "shoe"`

    Args:
        vocabulary: Names that may be used; None for all.
        aliases: A file that `read_aliases` reads.
    """

    def __init__(
        self, vocabulary: Iterable[str] | None = None, aliases: Path | None = None
    ) -> None:
        self._known = None if vocabulary is None else {_key(name): name for name in vocabulary}
        self._aliases = {} if aliases is None else read_aliases(aliases)

    def __call__(self, names: Iterable[str]) -> str | None:
        """The first of an object's names that can be used; None where there is none."""
        known = self._known
        for name in names:
            mapped = self._aliases.get(_key(name), name)
            found = " ".join(mapped.split()) if known is None else known.get(_key(mapped))
            if found:
                return found
        return None


def read_aliases(path: Path) -> dict[str, str]:
    """Canonical names by alias, from lines `canonical,alias,alias…`.

    The format of scene-graph-TF-release's `object_alias.txt` and `predicate_alias.txt`. A canonical
    name that is itself an alias of an earlier line stands for that line's.

    Raises:
        InvalidInputError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"cannot read the aliases in {path}: {error}") from error
    aliases: dict[str, str] = {}
    for line in lines:
        first, *others = (name.strip() for name in line.split(","))
        if first:
            canonical = aliases.get(_key(first), first)
            aliases.update({_key(name): canonical for name in (first, *others) if name})
    return aliases


def _key(name: str) -> str:
    """What two spellings of a name have in common; punctuation is left out, as VG150 does."""
    return " ".join(_PUNCTUATION.sub("", normalise_name(name)).split())
