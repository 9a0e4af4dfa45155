"""Terms that a user writes: a function of two plain graphs, in a file beside the run's settings.

For example `reward.terms = ["my_rewards.py:polite"]` loads

    def polite(predicted, reference):
        "The share of predicted objects that are no men."
        men = sum(one.category == "man" for one in predicted.objects)
        return 1 - men / max(len(predicted.objects), 1)

and a rubric can then weigh `polite`. The file is the user's own code, and runs with all rights of
the service.
"""

import hashlib
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np

from reward_service.terms import ALL_TASKS, TERMS, ComparedBatch, Term, add_term
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.similarity import Floats
from services.errors import InvalidInputError, SettingsError
from services.schemas.rubrics import Rubric

logger = logging.getLogger(__name__)

OwnTerm = Callable[[SceneGraph, SceneGraph], float]
"""A predicted graph and its reference to a value in 0..1. Names are normalised, ids are
`category.number`, and boxes are x1, y1, x2, y2 in fractions of the image's width and height."""

_EXAMPLE = SceneGraph(
    objects=(
        SceneObject(id="man.1", bbox=(0.1, 0.1, 0.5, 0.9)),
        SceneObject(id="horse.1", bbox=(0.2, 0.4, 0.9, 1.0)),
    ),
    relationships=(Relationship(subject="man.1", predicate="riding", object="horse.1"),),
)
_EMPTY = SceneGraph(objects=(), relationships=())


def load_own_terms(places: Iterable[str]) -> None:
    """List the functions of `reward.terms` among `reward_service.terms.TERMS`; twice is as once.

    Args:
        places: `FILE.py:FUNCTION` or `MODULE:FUNCTION`; the function's name is the term's.

    Raises:
        SettingsError: There is no such function, its name is another term's, or it does not give
            a number in 0..1 for a small graph and for an empty one.
    """
    for place in places:
        _load(place)


@cache
def _load(place: str) -> None:
    name, function = place.rpartition(":")[2], _function(place)
    if name in TERMS:
        raise SettingsError(
            f"reward.terms: {place}: there is a term {name!r} already; give the function another "
            "name"
        )
    for predicted in (_EXAMPLE, _EMPTY):
        try:
            _value(name, function, predicted, _EXAMPLE)
        except InvalidInputError as error:
            raise SettingsError(f"reward.terms: {place}: {error.message}") from error
    summary = (inspect.getdoc(function) or place).partition("\n")[0]
    digest = hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()
    formula = f"{summary} (SHA-256 of its file: {digest[:16]})"
    add_term(name, Term(formula=formula, function=_over_batches(name, function), tasks=ALL_TASKS))


def _over_batches(name: str, function: OwnTerm) -> Callable[[ComparedBatch, Rubric], Floats]:
    def values(batch: ComparedBatch, _: Rubric) -> Floats:
        references = [columns.to_graph() for columns in batch.references]
        pairs = zip(batch.predicted, batch.comparison.group, strict=True)
        return np.array(
            [_value(name, function, one.to_graph(), references[group]) for one, group in pairs]
        )

    return values


def _value(name: str, function: OwnTerm, predicted: SceneGraph, reference: SceneGraph) -> float:
    try:
        value = float(function(predicted, reference))
    except (Exception, SystemExit) as error:
        logger.exception("the term %s failed", name)
        raise InvalidInputError(
            f"the term {name} failed: {type(error).__name__}: {error}"
        ) from error
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise InvalidInputError(f"the term {name} gave {value:g}; a term is in 0..1")
    return value


def _function(place: str) -> OwnTerm:
    source, _, name = place.rpartition(":")
    if not source or not name.isidentifier():
        raise SettingsError(
            f"reward.terms: {place} is neither FILE.py:FUNCTION nor MODULE:FUNCTION"
        )
    function = getattr(_module(source), name, None)
    if function is None:
        raise SettingsError(f"reward.terms: {source} has no function {name}")
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise SettingsError(f"reward.terms: {place} is no plain function: wrap it in a def")
    return function


@cache
def _module(source: str) -> ModuleType:
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise SettingsError(f"reward.terms: there is no file {source}")
    try:
        return _module_of_file(Path(source).absolute()) if is_file else import_module(source)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise SettingsError(
            f"reward.terms: {source} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _module_of_file(file: Path) -> ModuleType:
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    spec = spec_from_file_location(f"own_terms_{file.stem}_{digest}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module
