"""Base and novel names of VG150, for open-vocabulary scene graphs.

Training sees base names alone; evaluation looks at the novel ones too. Novel objects are those of
He et al. 2022 (ECCV, arXiv 2208.08165), novel predicates those of OvSGTR (Chen et al. 2024, arXiv
2311.10988), which names the settings:

| setting | training leaves out |
|---|---|
| `ovd` | objects with novel names, and with them their relationships |
| `ovr` | relationships with novel predicates |
| `ovdr` | both |
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from scene_data.vocabulary import Vocabulary, load_vocabulary

OpenVocabulary = Literal["ovd", "ovr", "ovdr"]

_FILE = Path(__file__).parent / "vocabularies/vg150.toml"


@dataclass(frozen=True, slots=True)
class NovelNames:
    """Names that training does not see."""

    objects: frozenset[str]
    predicates: frozenset[str]


@cache
def novel_names() -> NovelNames:
    """The 45 objects and 15 predicates of VG150 that are novel."""
    lists = tomllib.loads(_FILE.read_text())
    return NovelNames(frozenset(lists["novel_objects"]), frozenset(lists["novel_predicates"]))


def training_vocabulary(setting: OpenVocabulary) -> Vocabulary:
    """The names of VG150 that training may see."""
    whole = load_vocabulary("vg150")
    novel = novel_names()
    objects, predicates = whole.objects, whole.predicates
    if setting in ("ovd", "ovdr"):
        objects = tuple(name for name in objects if name not in novel.objects)
    if setting in ("ovr", "ovdr"):
        predicates = tuple(name for name in predicates if name not in novel.predicates)
    return Vocabulary(objects, predicates)
