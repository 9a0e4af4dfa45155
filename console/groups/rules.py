"""What a run's settings say about its answers: task, rubric, the clip, where its files lie."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from console.runs import Run
from reward_service.own_terms import term_name
from reward_service.rubrics import RUBRICS
from reward_service.similarity.registry import Similarities
from reward_service.terms import TERMS
from scene_graph.similarity import ExactSimilarity, Similarity
from services.errors import SettingsError, SggError
from services.printable import printable
from services.run_folder import RunFolder
from services.schemas.rewards import Notation, Task
from services.settings import Settings, load_settings

_MAX_MEANING = 300
"""Characters of a docstring"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a run's answers are read, held against their references, and weighed."""

    settings: Settings | None
    """None where the file is missing, or of another release"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the rubric's terms; empty where they are not known"""
    meanings: Mapping[str, str] = field(default_factory=dict)
    """What each of them measures; empty where nothing says so"""
    similarity: Similarity
    notes: tuple[str, ...] = ()
    """What is not as the run had it, in sentences"""

    @property
    def task(self) -> Task:
        """What the run asks for."""
        return self.settings.data.task if self.settings else "sgg"

    @property
    def notation(self) -> Notation:
        """What the run asks to write."""
        return self.settings.data.notation if self.settings else "json"


def rules_of(run: Run) -> Rules:
    """The rules of a run; read anew where its settings have changed."""
    try:
        stamp = run.files.config.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _rules(run.path, stamp)


@lru_cache(maxsize=32)
def _rules(run: Path, _stamp: int) -> Rules:
    files = RunFolder(run)
    try:
        settings = load_settings(files.config, environment={})
    except SettingsError as error:
        note = f"This run's settings cannot be used: {error.message}."
        return Rules(settings=None, similarity=ExactSimilarity(), notes=(note,))
    rubric = _rubric(settings)
    folder = settings.reward.similarity_folder
    tables = Path(files.seen_from(str(folder))) if folder else None
    similarity, notes = _similarity(str(rubric.get("similarity", "exact")), tables)
    own = {term_name(place): place.rpartition(":")[0] for place in settings.reward.terms}
    shipped = {name: term.formula for name, term in TERMS.items()}
    weights = _weights(rubric.get("terms"), settings.data.task)
    meanings = {
        name: shipped[name] if name in shipped else _own_meaning(files, own.get(name, ""), name)
        for name in weights
    }
    if not weights:
        notes += ("What each term weighs is not known here: no such rubric ships.",)
    if unknown := [name for name in weights if name not in shipped]:
        notes += (
            f"{' and '.join(unknown)}: of this run's own code, which the console does not run. "
            "Each value is the one that the run recorded.",
        )
    return Rules(
        settings=settings, weights=weights, meanings=meanings, similarity=similarity, notes=notes
    )


def _rubric(settings: Settings) -> Mapping[str, Any]:
    """As the file has it: a term of the run's own is in no list here."""
    wanted = settings.reward.rubric
    if isinstance(wanted, dict):
        return wanted
    return RUBRICS[wanted].model_dump() if wanted in RUBRICS else {}


def _weights(terms: object, task: Task) -> dict[str, float]:
    """Those that the task has; what is no number is left out."""
    return {
        str(name): float(value)
        for name, value in (terms if isinstance(terms, Mapping) else {}).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
        if name not in TERMS or task in TERMS[name].tasks
    }


def _own_meaning(files: RunFolder, source: str, name: str) -> str:
    """What a function of a file says of itself; read, and never run."""
    try:
        body = ast.parse(Path(files.seen_from(source)).read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError):  # or a module, or no such file
        return ""
    found = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
    text = ast.get_docstring(found[-1]) if found else None
    return printable((text or "").partition("\n")[0][:_MAX_MEANING])


def _similarity(name: str, folder: Path | None) -> tuple[Similarity, tuple[str, ...]]:
    """What the rubric names; exact where that needs a model or a table that is not here."""
    try:
        return Similarities(folder).get(name), ()
    except SggError:
        note = (
            f"The reward compares names by {name}, which is not at hand here: verdicts compare "
            "them exactly, so that nothing is alike. The terms are those that the run recorded."
        )
        return ExactSimilarity(), (note,)
