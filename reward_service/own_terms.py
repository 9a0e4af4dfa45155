"""Terms that a user writes: a function of two plain graphs, in a file beside the run's settings.

For example `reward.terms = ["my_rewards.py:polite"]` loads

    def polite(predicted, reference):
        "The share of predicted objects that are no men."
        men = sum(one.category == "man" for one in predicted.objects)
        return 1 - men / max(len(predicted.objects), 1)

and a rubric can then weigh `polite`. The file may import others of its folder. It is the user's own
code, and runs with all rights of the service.
"""

import hashlib
import inspect
import logging
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import cache
from importlib import import_module, invalidate_caches
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np

from reward_service.terms import ALL_TASKS, TERMS, ComparedBatch, Term, add_term
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from scene_graph.similarity import Floats
from services.errors import InvalidInputError, SettingsError
from services.own_code import source_digest, source_files
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
    with redirect_stdout(sys.stderr):  # what a file prints must not stand in a command's JSON
        for place in places:
            _load(place)


def _load(place: str) -> None:
    source, name = _parts(place)
    module = _module(source)
    function = _function(module, source, name)
    file = Path(inspect.getfile(module))
    digest = source_digest(file)
    try:
        _list(name, file.name, function, digest)
    except InvalidInputError as error:
        raise SettingsError(f"reward.terms: {place}: {error.message}") from error


def term_name(place: str) -> str:
    """The name by which a rubric weighs the function of a place.

    Example: `term_name("my_rewards.py:polite") == "polite"`
    """
    return place.rpartition(":")[2]


def check_weighed(places: Iterable[str], rubric: Rubric, *, setting: str) -> None:
    """Refuse a term that the rubric gives no weight: it would be computed by nobody.

    Args:
        places: As for `load_own_terms`.
        rubric: What rewards are made by.
        setting: Where the places were named, for the message.

    Raises:
        SettingsError: With the remedy.
    """
    unused = [place for place in places if term_name(place) not in rubric.terms]
    if unused:
        terms = {**rubric.terms, **dict.fromkeys(map(term_name, unused), 1)}
        written = ", ".join(f"{name} = {weight:g}" for name, weight in terms.items())
        raise SettingsError(
            f"{setting}: the rubric {rubric.name!r} gives {', '.join(map(term_name, unused))} no "
            f"weight, so it counts for nothing: write a rubric with it, [reward.rubric] with "
            f"terms = {{ {written} }} in the run's .toml (score: --rubric FILE), or leave "
            f"{', '.join(unused)} out"
        )


@cache  # one function may be named in several ways, such as my.py:f and ./my.py:f
def _list(name: str, file: str, function: OwnTerm, digest: str) -> None:
    if name in TERMS:
        raise SettingsError(f"there is a term {name!r} already; give the function another name")
    term = f"the term {name} of {file}"
    for predicted, what in ((_EXAMPLE, "a small graph"), (_EMPTY, "an empty graph")):
        _value(function, predicted, _EXAMPLE, term, what)
    summary = (inspect.getdoc(function) or name).partition("\n")[0]
    formula = f"{summary} (SHA-256 of its code: {digest})"
    add_term(name, Term(formula=formula, function=_over_batches(term, function), tasks=ALL_TASKS))


def _over_batches(term: str, function: OwnTerm) -> Callable[[ComparedBatch, Rubric], Floats]:
    def values(batch: ComparedBatch, _: Rubric) -> Floats:
        references = [columns.to_graph() for columns in batch.references]
        names = [f"group {group_id!r}" for group_id in batch.group_ids]
        pairs = zip(batch.predicted, batch.comparison.group, strict=True)
        return np.array(
            [
                _value(function, one.to_graph(), references[group], term, names[group])
                for one, group in pairs
            ]
        )

    return values


def _value(
    function: OwnTerm, predicted: SceneGraph, reference: SceneGraph, term: str, what: str
) -> float:
    """What the function gives; errors name the term, and `what` it is called for."""
    try:
        value = float(function(predicted, reference))
    except (Exception, SystemExit) as error:
        logger.exception("%s failed for %s", term, what)
        raise InvalidInputError(
            f"{term} failed for {what}: {type(error).__name__}: {error}"
        ) from error
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise InvalidInputError(f"{term} gave {value:g} for {what}; a term is in 0..1")
    return value


def _parts(place: str) -> tuple[str, str]:
    source, _, name = place.rpartition(":")
    if not source or not name.isidentifier():
        raise SettingsError(
            f"reward.terms: {place} is neither FILE.py:FUNCTION nor MODULE:FUNCTION"
        )
    return source, name


def _function(module: ModuleType, source: str, name: str) -> OwnTerm:
    function = getattr(module, name, None)
    if function is None:
        raise SettingsError(f"reward.terms: {source} has no function {name}")
    if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
        raise SettingsError(f"reward.terms: {source}:{name} is no plain function: wrap it in a def")
    return function


def _module(source: str) -> ModuleType:
    is_file = source.endswith(".py")
    if is_file and not Path(source).is_file():
        raise SettingsError(
            f"reward.terms: there is no file {source} (a path counts from {Path.cwd()})"
        )
    try:
        return _module_of_file(Path(source).resolve()) if is_file else import_module(source)
    except (Exception, SystemExit) as error:  # it is the user's code
        raise SettingsError(
            f"reward.terms: {source} cannot be imported: {type(error).__name__}: {error}"
        ) from error


@cache
def _module_of_file(file: Path) -> ModuleType:
    """The file as a module, whose imports find the files beside it, after all that is installed."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    invalidate_caches()
    for helper in source_files(file)[1:]:
        _check_helper(file.parent, helper.relative_to(file.parent).parts[0].removesuffix(".py"))
    digest = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    spec = spec_from_file_location(f"own_terms_{file.stem}_{digest}", file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def _check_helper(folder: Path, name: str) -> None:
    """Refuse a file beside the terms that an import of its name would pass over.

    Raises:
        ImportError: Something of that name is installed, or in the folder of other terms.
    """
    spec, ours = find_spec(name), (folder / f"{name}.py", folder / name / "__init__.py")
    if spec is not None and spec.origin and Path(spec.origin).resolve() not in ours:
        raise ImportError(
            f"import {name} gives {spec.origin}, and not {name} of {folder}: give that another name"
        )
