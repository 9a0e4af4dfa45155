"""How good predictions are."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from evaluation.evaluate_files import Request, run_evaluation
from evaluation.result import EvaluationResult
from scene_graph.cleaning import Task
from services.errors import InvalidInputError


def evaluate(
    predictions: str | Path,
    reference: str | Path,
    *,
    split: str | None = None,
    task: Task | None = None,
    train: str | Path | None = None,
    vocabulary: str | None = None,
    aliases: Sequence[str | Path] = (),
    output: str | Path | None = None,
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
        aliases: Files with more synonyms.
        output: A folder for metrics.json, images.jsonl, ratios.npz and report.html.

    Raises:
        InvalidInputError: Something cannot be read, or there is nothing to compare.
    """
    if task is not None and task not in get_args(Task):
        raise InvalidInputError(f"task {task!r} is none: use {', '.join(get_args(Task))}")
    request = Request(
        predictions=Path(predictions).expanduser(),
        reference=str(reference),
        split=split or Path(reference).stem,
        task=task,
        train=None if train is None else str(train),
        vocabulary=vocabulary,
        aliases=tuple(map(Path, aliases)),
    )
    return run_evaluation(request, None if output is None else Path(output).expanduser())
