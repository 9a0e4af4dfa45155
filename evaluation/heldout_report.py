"""`report.html` of a run: its held-out images after training, beside before."""

from dataclasses import replace
from pathlib import Path

from evaluation.heldout import heldout_samples
from evaluation.reading.graphs import dataset_graph
from evaluation.reading.predictions import read_predictions
from evaluation.reading.problems import Place, Problems
from evaluation.reading.references import ReferenceImage, References
from evaluation.report import write_report
from evaluation.result import EvaluationResult
from evaluation.scoring.compare import compare
from evaluation.scoring.evaluate import Options, evaluate
from scene_data.dataset import Sample
from services.settings import Settings


def write_heldout_report(settings: Settings) -> Path:
    """Write the report of `heldout-after.jsonl` and, where it is there, `heldout-before.jsonl`."""
    samples = {sample.image_id: sample for sample in heldout_samples(settings)}
    before, after = (_evaluated(settings, samples, label) for label in ("before", "after"))
    assert after is not None
    return write_report(
        after,
        settings.run.folder,
        lambda image_id: samples[image_id].image_bytes,
        compare(before, after) if before else None,
        num_images=len(samples),
    )


def _evaluated(
    settings: Settings, samples: dict[str, Sample], label: str
) -> EvaluationResult | None:
    """None where the run has no such answers."""
    file = settings.run.folder / f"heldout-{label}.jsonl"
    if not file.exists():
        return None
    problems = Problems()
    name = settings.data.heldout or settings.data.train
    images = {
        i: _reference(sample, Place(problems, name, None, i)) for i, sample in samples.items()
    }
    references = References(name=name, images=images)
    task = settings.data.task
    predictions = read_predictions(file, references, problems, task)
    options = Options(split=Path(name).stem, task=task)
    result = evaluate(predictions, references, problems, options)
    return replace(result, name=f"{settings.run.name}, {label} training")


def _reference(sample: Sample, place: Place) -> ReferenceImage:
    size = (sample.width, sample.height)
    graph = dataset_graph(sample.graph, size, place)
    return ReferenceImage(size=size, graph=graph, place=place, picture=None)
