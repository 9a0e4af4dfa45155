"""What a run's settings say about its answers: task, rubric, the clip, where its files lie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from console.runs import Run
from reward_service.rubrics import find_rubric, terms_of
from reward_service.similarity.registry import Similarities
from scene_graph.similarity import ExactSimilarity, Similarity
from services.errors import SettingsError, SggError
from services.schemas.rewards import Task
from services.settings import Settings, load_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a run's answers are read, held against their references, and weighed."""

    settings: Settings | None
    """None where the file is missing, or of another release"""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weights of the rubric's terms; empty where they are not known"""
    similarity: Similarity
    notes: tuple[str, ...] = ()
    """What is not as the run had it, in sentences"""

    @property
    def task(self) -> Task:
        """What the run asks for."""
        return self.settings.data.task if self.settings else "sgg"


def rules_of(run: Run) -> Rules:
    """The rules of a run; read anew where its settings have changed."""
    try:
        stamp = run.files.config.stat().st_mtime_ns
    except OSError:
        stamp = 0
    return _rules(run.files.config, stamp)


@lru_cache(maxsize=32)
def _rules(config: Path, _stamp: int) -> Rules:
    try:
        settings = load_settings(config, environment={})
    except SettingsError as error:
        note = f"This run's settings cannot be used: {error.message}."
        return Rules(settings=None, similarity=ExactSimilarity(), notes=(note,))
    reward = settings.reward
    try:
        rubric = find_rubric(reward.rubric)
        weights = terms_of(rubric, settings.data.task)
        wanted = rubric.similarity
    except (SggError, KeyError):  # it has terms of its own, which only the reward service loads
        given = reward.rubric if isinstance(reward.rubric, dict) else {}
        weights, wanted = _plain_weights(given.get("terms")), str(given.get("similarity", "exact"))
    similarity, notes = _similarity(wanted, reward.similarity_folder)
    if not weights:
        notes = (
            *notes,
            "What each term weighs is not known here: the rubric has terms of its own.",
        )
    return Rules(settings=settings, weights=weights, similarity=similarity, notes=notes)


def _plain_weights(terms: object) -> dict[str, float]:
    if not isinstance(terms, Mapping):
        return {}
    return {
        str(name): float(value)
        for name, value in terms.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _similarity(name: str, folder: Path | None) -> tuple[Similarity, tuple[str, ...]]:
    """What the rubric names; exact where that needs a model or a table that is not here."""
    try:
        return Similarities(folder).get(name), ()
    except SggError:
        note = f"Names are compared exactly here: the rubric's similarity {name} is not at hand."
        return ExactSimilarity(), (note,)
