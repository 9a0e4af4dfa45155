"""The policy on images that it is not trained on, sampled greedily through a rollout server."""

import asyncio
import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scene_data.dataset import Sample, SceneDataset, open_dataset
from scene_data.templates import prompt_messages
from scene_data.wire import box_space
from scene_graph.cleaning import clean_graph
from scene_graph.graph import SceneGraph
from scene_graph.metrics import strict_metrics
from scene_graph.parsing import parse_completion
from services.clients.rollout import RolloutClient
from services.errors import ConflictError
from services.schemas.common import Sampling
from services.schemas.rollouts import InlineImage, RolloutRequest, RolloutResponse
from services.settings import Settings

CONCURRENT_REQUESTS = 32


def evaluate_heldout(settings: Settings, *, label: str, policy_version: int) -> dict[str, Any]:
    """Sample `evaluation.num_images` images greedily and score the answers by the strict protocol.

    The answers are written to `heldout-<label>.jsonl` in the run's folder.

    Args:
        settings: Of the run; its rollout server must be serving.
        label: `before` or `after`.
        policy_version: That must have sampled every token.

    Returns:
        The fields of `SceneGraphMetrics`, and `completion_length_mean` in tokens.

    Raises:
        ConflictError: Another version answered.
    """
    samples = heldout_samples(settings)
    answers = asyncio.run(_sample(settings, samples))
    check_version(answers, policy_version)
    texts = [answer.completions[0].text for answer in answers]
    _write(settings.run.folder / f"heldout-{label}.jsonl", samples, answers)
    pairs = [
        (prediction_graph(text, settings, sample), clean_reference(sample))
        for text, sample in zip(texts, samples, strict=True)
    ]
    lengths = [len(answer.completions[0].token_ids) for answer in answers]
    return asdict(strict_metrics(pairs)) | {"completion_length_mean": sum(lengths) / len(lengths)}


def heldout_samples(settings: Settings) -> list[Sample]:
    """The first rows of the held-out split; of the training split where there is none."""
    dataset: SceneDataset = open_dataset(settings.data.heldout or settings.data.train)
    return [dataset[i] for i in range(min(len(dataset), settings.evaluation.num_images))]


def prediction_graph(text: str, settings: Settings, sample: Sample) -> SceneGraph | None:
    """The graph in an answer, boxes in fractions; None where it does not parse."""
    parsed = parse_completion(text, box_space(settings.model, sample))
    return parsed.graph if parsed.status == "ok" else None


def clean_reference(sample: Sample) -> SceneGraph:
    """A sample's graph by the rules that predictions are read by, boxes in fractions."""
    return clean_graph(sample.graph, f"pixels:{sample.width}x{sample.height}")[0]


async def _sample(settings: Settings, samples: Sequence[Sample]) -> list[RolloutResponse]:
    slots = asyncio.Semaphore(CONCURRENT_REQUESTS)
    async with RolloutClient(
        settings.rollout.url, token=settings.data_token, admin_token=None
    ) as client:

        async def one(sample: Sample) -> RolloutResponse:
            async with slots:
                return await client.rollouts(_request(settings, sample))

        return list(await asyncio.gather(*(one(sample) for sample in samples)))


def check_version(answers: Sequence[RolloutResponse], wanted: int) -> None:
    """A server that was restarted meanwhile may serve the model that it started with."""
    spans = [s for a in answers for c in a.completions for s in c.policy_versions]
    if others := {s.policy_version for s in spans} - {wanted}:
        raise ConflictError(f"version {sorted(others)} answered, not version {wanted}: do it again")


def _request(settings: Settings, sample: Sample) -> RolloutRequest:
    return RolloutRequest(
        messages=prompt_messages(
            settings.data.template,
            box_space(settings.model, sample),
            settings.data.vocabulary,
            thinking=settings.data.thinking,
        ),
        images=[InlineImage(data=base64.b64encode(sample.image_bytes).decode())],
        sampling=Sampling(n=1, temperature=0.0, max_tokens=settings.evaluation.max_tokens),
    )


def _write(file: Path, samples: Sequence[Sample], answers: Sequence[RolloutResponse]) -> None:
    rows = [
        {
            "image_id": sample.image_id,
            "text": answer.completions[0].text,
            "finish_reason": answer.completions[0].finish_reason,
            "num_tokens": len(answer.completions[0].token_ids),
            "policy_version": answer.completions[0].oldest_policy_version,
        }
        for sample, answer in zip(samples, answers, strict=True)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
