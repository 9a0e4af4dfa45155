"""A run's held-out images: the policy before, after and, now and then, while it trains."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic_core import to_json

from evaluation.inference.answers import NOT_ASKED
from evaluation.inference.fleet import Fleet
from evaluation.inference.infer import Inference, requests_per_server
from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
from evaluation.inference.record import asked_fields
from evaluation.of_a_run.progress_file import shown_progress
from evaluation.reading.lines import GraphLine
from scene_data.dataset import NUM_LISTED, Sample, is_too_broken, open_dataset
from scene_data.messages import box_space
from scene_graph.cleaning import Task, clean_columns
from scene_graph.graph import SceneGraph
from scene_graph.metrics.heldout_metrics import strict_metrics
from scene_graph.parsing import parse_completion
from services.errors import ConflictError, InvalidInputError, TooLargeError
from services.images import decode_image
from services.run_folder import RunFolder
from services.settings import Settings

logger = logging.getLogger(__name__)

Label = Literal["before", "now", "after"]
"""Version 0, the version that was evaluated last, or a run's last version."""
REQUESTS_PER_SERVER = 4
"""At the same time, of a run that trains: few, so that its training groups hardly wait."""
_NOT_MEASURED: dict[Task, tuple[str, ...]] = {
    "sgg": (),
    "det": ("triplet", "predicate"),
    "cls": ("object", "iou"),
}
"""Parts of names of metrics that say nothing about a task"""


@dataclass(frozen=True, slots=True)
class HeldoutAnswers:
    """What a version answered about the held-out images."""

    lines: list[GraphLine]
    """One for each image, in the order of the images."""
    asked: dict[str, Any]
    """How: model, versions, servers, question and sampling, as the report shows them."""


async def evaluate_heldout(
    settings: Settings, servers: Sequence[str], *, policy_version: int
) -> None:
    """Ask about the held-out images after training, score the answers strictly, keep both.

    Args:
        settings: The run's.
        servers: Urls of its rollout servers, which must be serving.
        policy_version: That must have sampled every token.

    Raises:
        ConflictError: Another version answered.
    """
    samples = heldout_samples(settings)
    progress = Progress(total=len(samples))
    async with shown_progress(settings.run.files, policy_version, "after", progress):
        found = await answers(settings, samples, servers, progress)
    scores = heldout_scores(settings, samples, found.lines)
    check_version(found.lines, policy_version)
    keep_heldout(settings, "after", found, scores)


def keep_heldout(
    settings: Settings, label: Label, found: HeldoutAnswers, scores: Mapping[str, Any]
) -> None:
    """Write answers to `heldout-<label>.jsonl`, how they were asked for beside it.

    Scores from before and after training go to `summary.json`. The answers of the last version
    replace those of the version `now`.

    Args:
        settings: The run's.
        label: What the answers are called.
        found: The answers; `check_version` has looked at those from before and after.
        scores: As `heldout_scores` gives them.
    """
    files = settings.run.files
    file = files.heldout(label)
    draft = file.with_suffix(".draft")
    draft.unlink(missing_ok=True)
    with PredictionsFile(draft) as predictions:
        for line in found.lines:
            predictions.append(line)
    _replace(file.with_suffix(".settings.json"), found.asked)
    draft.replace(file)  # at once: it may be read while a version is evaluated
    if label == "now":
        return
    _replace(files.summary, heldout_summary(files) | {label: scores})
    if label == "after":
        files.heldout("now").unlink(missing_ok=True)


def _replace(file: Path, value: Mapping[str, Any]) -> None:
    draft = file.with_suffix(".draft")
    draft.write_bytes(to_json(value, indent=2, inf_nan_mode="null") + b"\n")
    draft.replace(file)


def heldout_summary(files: RunFolder) -> dict[str, dict[str, Any]]:
    """A run's held-out scores by label, as far as they are there."""
    if not files.summary.exists():
        return {}
    results: dict[str, dict[str, Any]] = json.loads(files.summary.read_text())
    return results


def heldout_samples(settings: Settings) -> list[Sample]:
    """The first rows of the held-out split; of the training split where there is none.

    Images that cannot be used are left out and named in the log.

    Raises:
        InvalidInputError: None is left, or too many are left out.
    """
    dataset = open_dataset(settings.data.heldout or settings.data.train)
    samples: list[Sample] = []
    left_out: list[str] = []
    for index in range(len(dataset)):
        if len(samples) == settings.evaluation.num_images:
            break
        try:
            sample = dataset[index]
            decode_image(sample.image_bytes)
            samples.append(sample)
        except (InvalidInputError, TooLargeError) as error:
            logger.warning("held-out row %d is left out: %s", index, error.message)
            left_out.append(error.message)
    if is_too_broken(len(left_out), len(dataset)) or not samples:
        listed = "".join(f"\n  {text}" for text in left_out[:NUM_LISTED])
        raise InvalidInputError(f"{len(left_out)} held-out images cannot be used:{listed}")
    return samples


async def answers(
    settings: Settings,
    samples: list[Sample],
    servers: Sequence[str],
    progress: Progress,
    *,
    trains: bool = False,
) -> HeldoutAnswers:
    """A line for each image, sampled as `[evaluation]` says.

    Args:
        settings: The run's.
        samples: The images.
        servers: Urls of its rollout servers.
        progress: Counts the lines.
        trains: Whether the run goes on: the urls stood in Redis, new versions come, and the servers
            have training groups to sample.
    """
    lines: list[GraphLine] = []
    per_server = REQUESTS_PER_SERVER if trains else requests_per_server(settings)
    async with Fleet(settings, servers, per_server=per_server, registered=trains) as fleet:
        policy = await fleet.meet(model=settings.model.path, one_version=not trains)
        inference = Inference(settings, samples, fleet, progress)
        await inference.run(range(len(samples)), lambda _, line: lines.append(line))
    asked = {
        "model": policy.model,
        "policy_version": _in_words(answering_versions(lines)),
        "dtype": policy.dtype,
        "servers": list(servers),
        "dataset": settings.data.heldout or settings.data.train,
        "num_images": len(samples),
        **asked_fields(settings),
    }
    return HeldoutAnswers(lines, asked)


def heldout_scores(
    settings: Settings, samples: Sequence[Sample], lines: Sequence[GraphLine]
) -> dict[str, Any]:
    """The fields of `SceneGraphMetrics` that the task has, and `completion_length_mean` in tokens.

    For `cls` every box is the whole image, so that names alone decide. Images that no model was
    asked about count nowhere.
    """
    task = settings.data.task
    pairs = [
        (prediction_graph(line.text or "", settings, sample), clean_reference(sample, task))
        for line, sample in zip(lines, samples, strict=True)
        if line.status not in NOT_ASKED
    ]
    lengths = [line.num_tokens for line in lines if line.num_tokens is not None]
    metrics = _measured(asdict(strict_metrics(pairs)), task)
    metrics["intervals"] = _measured(metrics["intervals"], task)
    return metrics | {"completion_length_mean": fmean(lengths) if lengths else 0.0}


def _measured(scores: dict[str, Any], task: Task) -> dict[str, Any]:
    left_out = _NOT_MEASURED[task]
    return {k: v for k, v in scores.items() if not any(part in k for part in left_out)}


def prediction_graph(text: str, settings: Settings, sample: Sample) -> SceneGraph | None:
    """The graph in an answer, boxes in fractions; None where it does not parse."""
    space = box_space(settings.model, sample)
    data = settings.data
    parsed = parse_completion(text, space, task=data.task, notation=data.notation)
    return parsed.graph if parsed.status == "ok" else None


def clean_reference(sample: Sample, task: Task) -> SceneGraph:
    """A sample's graph by the rules that predictions are read by, boxes in fractions."""
    graph, size = sample.graph, (sample.width, sample.height)
    return clean_columns(graph.objects, graph.relationships, size, task)[0].to_graph()


def answering_versions(lines: Sequence[GraphLine]) -> set[int]:
    """Oldest and newest version of each answer."""
    return {version for line in lines for version in line.policy_versions or ()}


def _in_words(versions: set[int]) -> str:
    """Example: `40`, or `40 to 42`."""
    return " to ".join(map(str, sorted({min(versions), max(versions)}))) if versions else "unknown"


def check_version(lines: Sequence[GraphLine], wanted: int) -> None:
    """A server that was restarted meanwhile may serve the model that it started with."""
    if others := answering_versions(lines) - {wanted}:
        raise ConflictError(f"version {sorted(others)} answered, not version {wanted}: do it again")
