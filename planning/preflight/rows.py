"""A dataset's first rows and some random ones, with their pictures and prompts, before a start."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from planning.preflight.check import CheckResult
from planning.preflight.prompt_length import PromptLength
from scene_data.dataset import Sample, SceneDataset, is_too_broken, open_dataset
from scene_data.messages import box_space, image_messages
from scene_data.reading.refusal import PAGE
from scene_data.reading.sources import is_hub_name
from scene_graph.cleaning import Task
from services.errors import InvalidInputError, SettingsError, TooLargeError, UnavailableError
from services.images import decode_image
from services.printable import counted
from services.schemas.common import ChatMessage
from services.settings import Settings

_NUM_FIRST = 4
_NUM_RANDOM = 12
_NUM_SAID = 3
"""Faults that are said in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A dataset as a setting names it."""

    setting: str
    """Example: `data.train`"""
    name: str
    """A path, or a name on the hub."""
    answer: Literal["sampling", "evaluation"] | None
    """The section whose `max_tokens` is the longest answer; None where none is sampled."""
    task: Task | None = None
    thinking_column: str | None = None
    num_rows: int | None = None
    """Only so many from the first on are used; None: all."""
    annotated: bool = True
    """False: its rows need no graph."""
    rows: SceneDataset | None = None
    """Where it is open already"""

    @property
    def title(self) -> str:
        """The name of its check."""
        return "held-out set" if self.setting == "data.heldout" else "dataset"


def source_checks(
    source: Source, settings: Settings, lengths: PromptLength | None, *, fetch: bool
) -> Iterator[CheckResult]:
    """Open a dataset and read some rows as a run does.

    Args:
        source: The dataset.
        settings: The run's settings.
        lengths: Counts prompts; None where nothing is known of the model.
        fetch: A dataset of the hub that is not reached is a fault; else it is said to be unchecked.
    """
    try:
        dataset = source.rows or opened(
            source.name, source.task, source.thinking_column, annotated=source.annotated
        )
    except InvalidInputError as error:
        yield _not_opened(source, error, fetch=fetch)
        return
    indexes = _indexes(min(len(dataset), source.num_rows or len(dataset)), settings.run.seed)
    samples, faults = _read(dataset, indexes, lengths)
    if faults:
        yield _faulty(source, faults, len(indexes))
    else:
        detail = (
            f"{source.name}, {counted(len(dataset), 'row')}; {len(indexes)} of them and their "
            "pictures read"
        )
        yield CheckResult(source.title, "ok", detail)
    if samples:
        yield from prompt_checks(source, samples, settings, lengths)


def is_of_the_hub(name: str) -> bool:
    """Whether a name can only be the hub's: `owner/name`, and there is no folder `owner` here."""
    return is_hub_name(name) and not Path(name).parent.is_dir()


@lru_cache(maxsize=2)  # of many rows it takes seconds, and a start asks for its length again
def opened(
    name: str,
    task: Task | None = None,
    thinking_column: str | None = None,
    *,
    annotated: bool = True,
) -> SceneDataset:
    """A dataset; the same one again where this process asks again.

    Raises:
        InvalidInputError: As `open_dataset`.
    """
    if is_hub_name(name) and not is_of_the_hub(name):
        raise InvalidInputError(
            f"there is no {name}, and {Path(name).parent} is here (seen from {Path.cwd()})"
        )
    try:
        return open_dataset(name, task=task, thinking_column=thinking_column, annotated=annotated)
    except OSError as error:
        raise InvalidInputError(f"{name} cannot be read: {error}") from error


def _not_opened(source: Source, error: InvalidInputError, *, fetch: bool) -> CheckResult:
    if is_of_the_hub(source.name) and not fetch:
        detail = (
            f"{source.name} is not checked: there is no such path here, and the hub did not give it"
        )
        return CheckResult(source.title, "info", detail)
    page = "" if PAGE in error.message else f" ({PAGE})"
    return CheckResult(source.title, "missing", f"{source.setting}: {error.message}{page}")


def _indexes(num_rows: int, seed: int) -> list[int]:
    """The first rows, and random ones of the others."""
    first = range(min(_NUM_FIRST, num_rows))
    others = np.random.default_rng(seed).permutation(np.arange(len(first), num_rows))
    return [*first, *sorted(map(int, others[:_NUM_RANDOM]))]


def _read(
    dataset: SceneDataset, indexes: list[int], lengths: PromptLength | None
) -> tuple[dict[str, Sample], list[str]]:
    """Usable rows by their places, and what is wrong with the others."""
    samples, faults = {}, []
    for index in indexes:
        place = dataset.place(index)
        try:
            sample = dataset[index]
            decode_image(sample.image_bytes)
            if lengths is not None:
                lengths.check_fits(sample)
            samples[place] = sample
        except (InvalidInputError, TooLargeError) as error:
            known = error.message.startswith(place)
            faults.append(error.message if known else f"{place}: {error.message}")
    return samples, faults


def _faulty(source: Source, faults: list[str], num_read: int) -> CheckResult:
    """A run leaves out a few such rows, and no more."""
    listed = "\n".join(f"  {fault}" for fault in faults[:_NUM_SAID])
    head = f"{source.setting}: {len(faults)} of {num_read} rows that were read cannot be used"
    if len(faults) == num_read or is_too_broken(len(faults), num_read):
        end = "\n`sgg-rl data inspect --images` counts all"
        return CheckResult(source.title, "missing", f"{head}:\n{listed}{end}")
    return CheckResult(source.title, "warning", f"{head}, and a run leaves them out:\n{listed}")


def prompt_checks(
    source: Source, samples: dict[str, Sample], settings: Settings, lengths: PromptLength | None
) -> Iterator[CheckResult]:
    """Make the prompts of samples, by their places.

    A model of which nothing is known has a check of its own.
    """
    try:
        prompts = {
            place: (sample, image_messages(settings.data, box_space(settings.model, sample)))
            for place, sample in samples.items()
        }
    except (SettingsError, UnavailableError):
        return
    except InvalidInputError as error:
        yield CheckResult("prompt", "missing", error.message)  # of whatever dataset
        return
    if lengths is not None:
        try:
            yield _longest_prompt(source, prompts, settings, lengths)
        except SettingsError as error:
            yield CheckResult("prompt", "missing", error.message)


def _longest_prompt(
    source: Source,
    prompts: dict[str, tuple[Sample, list[ChatMessage]]],
    settings: Settings,
    lengths: PromptLength,
) -> CheckResult:
    name = f"prompt of {source.setting}"
    tokens = {
        place: (lengths.text_tokens(messages), lengths.image_tokens(sample))
        for place, (sample, messages) in prompts.items()
    }
    place = max(tokens, key=lambda place: sum(tokens[place]))
    text, image = tokens[place]
    if source.answer is None:
        return CheckResult(name, "ok", f"{text} tokens of text and {image} of the image")
    asked_by, longest = f"{source.answer}.max_tokens", getattr(settings, source.answer).max_tokens
    total, most = text + image + longest, settings.rollout.max_model_len
    sizes = (
        f"{text} tokens of text, {image} of the image and {asked_by} = {longest} "
        f"make {total}, and rollout.max_model_len is {most}"
    )
    if total <= most:
        return CheckResult(name, "ok", sizes)
    remedy = f"raise it to {total} or more, or lower {asked_by} or model.max_pixels"
    return CheckResult(name, "missing", f"{place}: {sizes}: {remedy}")
