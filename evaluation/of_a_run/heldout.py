"""A run's held-out images: the policy before, after and, now and then, while it trains."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any, Literal

from pydantic_core import to_json

from evaluation.inference.answers import NOT_ASKED
from evaluation.inference.fleet import Fleet
from evaluation.inference.infer import Inference, requests_per_server
from evaluation.inference.predictions import PredictionsFile
from evaluation.inference.progress import Progress
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

Label = Literal["before", "after"]
"""Version 0, or a run's last version."""
REQUESTS_PER_SERVER = 4
"""At the same time, of a run that trains: few, so that its training groups hardly wait."""
_NOT_MEASURED: dict[Task, tuple[str, ...]] = {
    "sgg": (),
    "det": ("triplet", "predicate"),
    "cls": ("object", "iou"),
}
"""Parts of names of metrics that say nothing about a task"""


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
    lines = await answers(settings, samples, servers)
    scores = heldout_scores(settings, samples, lines)
    keep_heldout(settings, "after", lines, scores, policy_version=policy_version)


def keep_heldout(
    settings: Settings,
    label: Label,
    lines: Sequence[GraphLine],
    scores: Mapping[str, Any],
    *,
    policy_version: int,
) -> None:
    """Write answers to `heldout-<label>.jsonl` and their scores to `summary.json`.

    Args:
        settings: The run's.
        label: What they are called.
        lines: The answers.
        scores: As `heldout_scores` gives them.
        policy_version: That must have sampled every token.

    Raises:
        ConflictError: Another version answered; nothing is written.
    """
    check_version(lines, policy_version)
    files = settings.run.files
    file = files.heldout(label)
    file.unlink(missing_ok=True)
    with PredictionsFile(file) as predictions:
        for line in lines:
            predictions.append(line)
    draft = files.summary.with_suffix(".draft")
    text = to_json(heldout_summary(files) | {label: scores}, indent=2, inf_nan_mode="null")
    draft.write_bytes(text + b"\n")
    draft.replace(files.summary)


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
    settings: Settings, samples: list[Sample], servers: Sequence[str], *, trains: bool = False
) -> list[GraphLine]:
    """A line for each image, sampled as `[evaluation]` says.

    Args:
        settings: The run's.
        samples: The images.
        servers: Urls of its rollout servers.
        trains: Whether the run goes on: the urls stood in Redis, new versions come, and the servers
            have training groups to sample.
    """
    lines: list[GraphLine] = []
    per_server = REQUESTS_PER_SERVER if trains else requests_per_server(settings)
    async with Fleet(settings, servers, per_server=per_server, registered=trains) as fleet:
        await fleet.meet(model=settings.model.path, one_version=not trains)
        inference = Inference(settings, samples, fleet, Progress(total=len(samples)))
        await inference.run(range(len(samples)), lambda _, line: lines.append(line))
    return lines


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
    metrics = {
        name: value
        for name, value in asdict(strict_metrics(pairs)).items()
        if not any(part in name for part in _NOT_MEASURED[task])
    }
    return metrics | {"completion_length_mean": fmean(lengths) if lengths else 0.0}


def prediction_graph(text: str, settings: Settings, sample: Sample) -> SceneGraph | None:
    """The graph in an answer, boxes in fractions; None where it does not parse."""
    space = box_space(settings.model, sample)
    parsed = parse_completion(text, space, task=settings.data.task)
    return parsed.graph if parsed.status == "ok" else None


def clean_reference(sample: Sample, task: Task) -> SceneGraph:
    """A sample's graph by the rules that predictions are read by, boxes in fractions."""
    graph, size = sample.graph, (sample.width, sample.height)
    return clean_columns(graph.objects, graph.relationships, size, task)[0].to_graph()


def answering_versions(lines: Sequence[GraphLine]) -> set[int]:
    """Oldest and newest version of each answer."""
    return {version for line in lines for version in line.policy_versions or ()}


def check_version(lines: Sequence[GraphLine], wanted: int) -> None:
    """A server that was restarted meanwhile may serve the model that it started with."""
    if others := answering_versions(lines) - {wanted}:
        raise ConflictError(f"version {sorted(others)} answered, not version {wanted}: do it again")
