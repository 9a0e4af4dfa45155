"""The stories of `sgg-rl evaluate`: read, compare, write."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.reading.predictions import predicted_task, read_predictions
from evaluation.reading.problems import Problems
from evaluation.reading.references import read_references
from evaluation.reading.training_split import read_training_split
from evaluation.report.page import write_report
from evaluation.result import EvaluationResult
from evaluation.scoring.compare import Comparison, compare
from evaluation.scoring.evaluate import Options, evaluate
from evaluation.scoring.mapping import Mapper
from evaluation.storage import load_result, save_comparison, save_result
from scene_data.conversion.names import read_aliases
from scene_data.vocabulary import Aliases, load_aliases, load_vocabulary
from scene_graph.cleaning import Task
from scene_graph.graph import normalise_name
from services.errors import InvalidInputError, SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to evaluate, and how."""

    predictions: Path
    """See `read_predictions`"""
    reference: str
    """See `read_references`"""
    split: str
    """The reference's name"""
    task: Task | None = None
    """What the settings beside the predictions say, where it is None"""
    train: str | None = None
    """The training split"""
    vocabulary: str | None = None
    """`vg150`, `psg` or the path of one's own: predicted names are mapped to it"""
    aliases: tuple[Path, ...] = ()
    """Files of synonyms; they come before the shipped ones, later files before earlier"""
    embedding_model: str | None = None
    num_images: int = 100
    """That the report shows"""


def run_evaluation(
    request: Request, output: Path | None, on_stage: Callable[[str], object] = lambda _: None
) -> EvaluationResult:
    """Read, evaluate, and write the results into a folder, where one is given.

    Args:
        request: What to evaluate.
        output: The folder.
        on_stage: Called with the name of each part of the work as it begins.

    Raises:
        InvalidInputError: Something cannot be read, or there is nothing to compare.
        SettingsError: The request contradicts itself.
    """
    on_stage("reading references and predictions")
    mapper = _mapper(request)
    task = request.task or predicted_task(request.predictions)
    problems = Problems()
    training = read_training_split(request.train) if request.train else None
    references = read_references(request.reference, problems, task)
    predictions = read_predictions(request.predictions, references, problems, task)
    if output is not None:  # one that cannot be a folder is said before the work
        output.mkdir(parents=True, exist_ok=True)
    options = Options(split=request.split, task=task, mapper=mapper, training=training)
    inputs = {
        "predictions": str(predictions.file),
        "reference": request.reference,
        "train": request.train,
        "vocabulary": request.vocabulary,
        "embedding_model": request.embedding_model,
    }
    on_stage(f"scoring {len(references.images):,} images")
    result = replace(evaluate(predictions, references, problems, options), inputs=inputs)
    if output is not None:
        on_stage("writing the report")
        save_result(result, output)
        write_report(result, output, references.image_bytes, num_images=request.num_images)
    return result


def run_comparison(
    folders: tuple[Path, Path],
    output: Path,
    num_images: int,
    on_stage: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Compare two finished evaluations, and write `comparison.json` and the report.

    Raises:
        InvalidInputError: One of them is not there, or they have no image in common.
    """
    if output.resolve() in {folder.resolve() for folder in folders}:
        raise InvalidInputError(f"{output} is compared: give --output another folder")
    on_stage("reading both evaluations")
    first, second = map(load_result, folders)
    if first.name == second.name:  # then folders tell them apart
        first, second = (
            replace(result, name=str(folder))
            for result, folder in zip((first, second), folders, strict=True)
        )
    on_stage("comparing them")
    compared = compare(first, second)
    on_stage("writing the report")
    output.mkdir(parents=True, exist_ok=True)
    save_comparison(compared, output)
    write_report(second, output, _pictures(second), compared, num_images)
    return compared


def _pictures(result: EvaluationResult) -> Callable[[str], bytes | None]:
    """Pictures of the reference, where it is still there."""
    try:
        references = read_references(result.inputs["reference"] or "", Problems(), result.task)
    except InvalidInputError:
        return lambda _: None
    return references.image_bytes


def _mapper(request: Request) -> Mapper | None:
    if request.vocabulary is None:
        if request.aliases or request.embedding_model:
            raise SettingsError("--aliases and --embedding-model need a --vocabulary to map to")
        return None
    similarity = None
    if request.embedding_model:
        from reward_service.similarity.embedding import load_embedding

        similarity = load_embedding(request.embedding_model)
    vocabulary = load_vocabulary(request.vocabulary).normalised()
    shipped = load_aliases(request.vocabulary)
    objects, predicates = dict(shipped.objects), dict(shipped.predicates)
    for file in request.aliases:
        given = {alias: normalise_name(name) for alias, name in read_aliases(file).items()}
        objects |= _into(vocabulary.objects, given)
        predicates |= _into(vocabulary.predicates, given)
    return Mapper(
        vocabulary=vocabulary, aliases=Aliases(objects, predicates), similarity=similarity
    )


def _into(vocabulary: Sequence[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Those that lead to a name of the vocabulary: others would hide shipped ones."""
    return {alias: name for alias, name in aliases.items() if name in vocabulary}
