"""How good predictions are."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import InstanceOf

from evaluation.evaluate_files import Request, run_evaluation
from evaluation.result import EvaluationResult
from evaluation.scoring import compare as comparing
from evaluation.storage import load_result
from scene_graph.cleaning import Task
from sgg_rl.arguments import AnyPath, checked


@checked
def evaluate(
    predictions: AnyPath,
    reference: AnyPath,
    *,
    split: str | None = None,
    task: Task | None = None,
    train: AnyPath | None = None,
    vocabulary: AnyPath | None = None,
    aliases: AnyPath | Sequence[AnyPath] = (),
    output: AnyPath | None = None,
) -> EvaluationResult:
    """Every metric of predicted scene graphs, with 95 % intervals, by three protocols.

    Example:
        >>> result = sgg_rl.evaluate("mine.jsonl", "toy/heldout.parquet")
        >>> result
        <EvaluationResult 'mine' on 'heldout': 8 images, strict recall@100 1.000>
        >>> result.protocols["strict"]["triplet_f1"], result.objects["recall"]
        (1.0, 1.0)

    Args:
        predictions: A JSONL file, or a folder with `predictions.jsonl` (docs/evaluation.md).
        reference: The annotated dataset; of its images each counts, also without a prediction.
        split: The reference's name, for headings; its file's where it is None.
        task: As the predictions' settings say, where it is None.
        train: The training split, for zero-shot recall and frequencies.
        vocabulary: `vg150`, `psg` or a file: predicted names are mapped to it.
        aliases: A file with more synonyms, or several.
        output: A folder for metrics.json, images.jsonl, ratios.npz and report.html.

    Raises:
        InvalidInputError: Something cannot be read or written, or there is nothing to compare.
    """
    request = Request(
        predictions=Path(predictions),
        reference=str(reference),
        split=split or Path(reference).stem,
        task=task,
        train=None if train is None else str(train),
        vocabulary=None if vocabulary is None else str(vocabulary),
        aliases=tuple(map(Path, [aliases] if isinstance(aliases, str | Path) else aliases)),
    )
    return run_evaluation(request, None if output is None else Path(output))


@checked
def compare(
    first: InstanceOf[EvaluationResult] | AnyPath, second: InstanceOf[EvaluationResult] | AnyPath
) -> comparing.Comparison:
    """Which differences of two evaluations are more than chance, on the images that both have.

    Example:
        >>> result = sgg_rl.evaluate("mine.jsonl", "toy/heldout.parquet", output="found")
        >>> sgg_rl.compare("found", result)
        <Comparison of 'mine' with 'mine': 8 images, 0 of
        47 differences beyond chance>

    Args:
        first: The one to compare with; or the folder that `evaluate` has written.
        second: The one that is asked about.

    Raises:
        InvalidInputError: A folder has no finished evaluation; or the two have no image in common,
            or are of different tasks.
    """
    return comparing.compare(_result(first), _result(second))


def _result(found: EvaluationResult | str | Path) -> EvaluationResult:
    return load_result(Path(found)) if isinstance(found, str | Path) else found
