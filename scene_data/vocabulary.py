"""The names that a closed-vocabulary run may use, and other names for them.

VG150 has base and novel names, for open-vocabulary scene graphs. Training sees base names alone;
evaluation looks at the novel ones too. Novel objects are those of He et al. 2022 (ECCV, arXiv
2208.08165), novel predicates those of OvSGTR (Chen et al. 2024, arXiv 2311.10988), which names the
settings:

| setting | training leaves out |
|---|---|
| `ovd` | objects with novel names, and with them their relationships |
| `ovr` | relationships with novel predicates |
| `ovdr` | both |
"""

import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from scene_data.reading.json_stream import read_members
from scene_data.reading.refusal import refusal, shown
from scene_graph.graph import normalise_name

SHIPPED = ("vg150", "psg")
OpenVocabulary = Literal["ovd", "ovr", "ovdr"]

_FOLDER = Path(__file__).parent / "vocabularies"
_FORMS = (
    (("objects",), ("predicates",)),
    (("idx_to_label",), ("idx_to_predicate",)),
    (("label_to_idx",), ("predicate_to_idx",)),
    (("thing_classes", "stuff_classes"), ("predicate_classes",)),
    (("categories",), ("rel_categories",)),
    (("obj",), ("rel",)),
)
"""Members of a file with the objects, and with the predicates"""
_LARGE = ("data", "images", "annotations", "rel_annotations")
"""Members of a dataset's file that are no names"""


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
    """A shipped vocabulary (`vg150`, `psg`), or that of a file.

    Args:
        name: Its name, or the path of a file in one of these forms:

            | file | objects and predicates |
            |---|---|
            | JSON or TOML | `objects` and `predicates`, lists of names |
            | JSON of a dataset | VG150's dictionaries, PSG's, COCO's, or PySGG's lists |
            | text | a line `[objects]` with one name a line below it; `[predicates]` likewise |

    Raises:
        InvalidInputError: There is no such file, it is in none of the forms, has a name twice,
            or an object's name with a dot.
    """
    if name in SHIPPED:
        lists = _shipped(name)
        return Vocabulary(tuple(lists["objects"]), tuple(lists["predicates"]))
    path = Path(name)
    if not path.is_file():
        wanted = f"{', '.join(SHIPPED)} or the path of a file is wanted"
        raise refusal(name, "no such vocabulary", wanted)
    members = _members(path)
    for keys in _FORMS:
        if any(key in members for key in keys[0]):
            objects, predicates = (_names(members, of, path) for of in keys)
            if dotted := [name for name in objects if "." in name]:
                wanted = "names without a dot are wanted: an id's name ends at its first dot"
                raise refusal(path, f"an object is {dotted[0]!r}", wanted)
            return Vocabulary(objects, predicates)
    found = f"its members are {', '.join(members) or 'none'}"
    if path.suffix not in (".json", ".toml"):
        raise refusal(path, found, "lines [objects] and [predicates] are wanted above the names")
    forms = "; ".join(" + ".join((*objects, *predicates)) for objects, predicates in _FORMS)
    raise refusal(path, found, f"wanted are {forms}")


def load_aliases(name: str) -> Aliases:
    """The shipped aliases of a vocabulary: plurals, other spellings, clear synonyms.

    A vocabulary of one's own has none.
    """
    if name not in SHIPPED:
        return Aliases({}, {})
    lists = _shipped(f"{name}-aliases")
    return Aliases(_by_alias(lists["objects"]), _by_alias(lists["predicates"]))


def training_vocabulary(setting: OpenVocabulary) -> Vocabulary:
    """The names of VG150 that training may see."""
    whole, novel = load_vocabulary("vg150"), novel_names()
    objects, predicates = whole.objects, whole.predicates
    if setting in ("ovd", "ovdr"):
        objects = tuple(name for name in objects if name not in novel.objects)
    if setting in ("ovr", "ovdr"):
        predicates = tuple(name for name in predicates if name not in novel.predicates)
    return Vocabulary(objects, predicates)


def novel_names() -> Vocabulary:
    """The 45 objects and 15 predicates of VG150 that are novel: training does not see them."""
    lists = _shipped("vg150")
    return Vocabulary(tuple(lists["novel_objects"]), tuple(lists["novel_predicates"]))


def _shipped(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text())


def _by_alias(lists: dict[str, list[str]]) -> dict[str, str]:
    return {
        normalise_name(alias): normalise_name(name)
        for name, aliases in lists.items()
        for alias in aliases
    }


def _members(path: Path) -> dict[str, Any]:
    if path.suffix == ".json":
        return read_members(path, without=_LARGE)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text) if path.suffix == ".toml" else _sections(text)
    except (OSError, ValueError) as error:
        raise refusal(path, f"cannot be read ({error})", "a vocabulary is wanted") from error


def _sections(text: str) -> dict[str, list[str]]:
    """Lines below `[objects]` and `[predicates]`."""
    found: dict[str, list[str]] = {}
    section: list[str] | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = found.setdefault(line[1:-1].strip().lower(), [])
        elif section is None or "," in line:
            place = "above the first section" if section is None else "with a comma"
            wanted = "one name a line below [objects] or [predicates]"
            raise ValueError(f"line {number}, {line!r}, is {place}: {wanted}")
        else:
            section.append(line)
    return found


def _names(members: dict[str, Any], keys: tuple[str, ...], path: Path) -> tuple[str, ...]:
    names = [name for key in keys for name in _listed(members.get(key, []))]
    where = " + ".join(keys)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        found = shown([members.get(key) for key in keys])
        raise refusal(path, f"{where} is {found}", "names are wanted, one or more")
    counts = Counter(map(normalise_name, names))
    if twice := [name for name, number in counts.items() if number > 1]:
        raise refusal(path, f"{where} has {twice[0]!r} twice", "each name is wanted once")
    return tuple(map(str.strip, names))


def _listed(value: Any) -> list[Any]:
    """Names in their order: a list of them, of `{"id", "name"}`, or an object either way round."""
    if isinstance(value, dict) and all(isinstance(number, int) for number in value.values()):
        value = sorted(value, key=value.__getitem__)
    elif isinstance(value, dict):
        value = [value[key] for key in sorted(value, key=lambda key: (len(key), key))]
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = [item.get("name") for item in value]
    found = value if isinstance(value, list) else [value]
    return [name for name in found if name != "__background__"]
