"""`sgg-rl demo --data X`: what of the demo's settings has to follow other data.

The held-out set is X's own: a split beside it, or rows that are set aside. Instruction and pixels
follow where the settings have those of toy-scenes.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from planning.preflight.prompt_length import PromptLength, tokenizer_folder
from scene_data.dataset import Sample, SceneDataset, open_dataset
from scene_data.messages import box_space, image_messages
from scene_data.reading.sources import is_hub_name
from scene_data.toy.scenes import NAMES
from scene_data.vocabulary import load_vocabulary
from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import normalise_name
from services.errors import InvalidInputError, SettingsError, TooLargeError, UnavailableError
from services.images import decode_image
from services.settings import Settings, load_settings

_HELDOUT_WORDS = ("heldout", "validation", "val", "test", "dev")
"""What may stand in the place of `train` in the name of a held-out split, the first one first."""
_HELDOUT_SHARE = 0.2
"""Share of a dataset without such a split that is set aside, at most."""
_NUM_LOOKED_AT = 64
"""Rows whose names and sizes decide instruction and pixels."""
_MOST_PIXELS = 256 * 28 * 28
"""Pixels of an image: as many visual tokens as a demo on a CPU has the time for."""
_TOKENS_AT_ONCE = 64
_SET_ASIDE_SEED = 0


def data_overrides(files: Sequence[Path], overrides: Sequence[str], data: str) -> list[str]:
    """Settings that follow the data, as `--set` takes them; the user's own go after them.

    Rows that are set aside, and those that are left to train on, are written to
    `<run folder>.data/`: as many as the demo takes. The same data gives the same rows.

    Args:
        files: The settings' files.
        overrides: The user's.
        data: A dataset.

    Raises:
        SettingsError: The settings cannot be read.
    """
    follows = [_set("data.train", data), "data.heldout="]
    settings = load_settings(files, [*follows, *overrides])
    try:
        dataset = open_dataset(settings.data.train, task=settings.data.task)
        samples = _usable(dataset)
    except InvalidInputError:
        return follows  # said in full by the look at all inputs
    if settings.data.heldout is None:
        follows = _splits(settings, dataset)
    if settings.data.template != "toy" or _all_in(samples, NAMES, None):
        return follows
    follows += _instruction(samples)
    largest = max(sample.width * sample.height for sample in samples)
    pixels = min(max(largest, settings.model.max_pixels), _MOST_PIXELS)
    follows.append(f"model.max_pixels={pixels}")
    return [*follows, *_token_limits(load_settings(files, [*follows, *overrides]), samples)]


def _usable(dataset: SceneDataset) -> list[Sample]:
    samples = []
    for index in range(min(len(dataset), _NUM_LOOKED_AT)):
        with suppress(InvalidInputError, TooLargeError):
            samples.append(dataset[index])
    if not samples:
        raise InvalidInputError("no row has a usable picture")
    return samples


def _splits(settings: Settings, dataset: SceneDataset) -> list[str]:
    """The training and the held-out split."""
    name = settings.data.train
    if (heldout := _beside(name)) is not None:
        return [_set("data.train", name), _set("data.heldout", heldout)]
    if len(dataset) == 1:
        return [_set("data.train", name), "data.heldout="]
    folder = settings.run.folder.with_name(f"{settings.run.name}.data")
    train, kept = _set_aside(settings, dataset, folder)
    return [_set("data.train", str(train)), _set("data.heldout", str(kept))]


def _beside(name: str) -> str | None:
    """The held-out split next to a training one."""
    if is_hub_name(name):
        return _split_of_the_hub(name)
    place = Path(name)
    names = (place.name.replace("train", word) for word in _HELDOUT_WORDS)
    beside = (place.with_name(other) for other in names if "train" in place.name)
    return next((str(path) for path in beside if path.exists()), None)


def _split_of_the_hub(name: str) -> str | None:
    import datasets

    repository, _, split = name.partition(":")
    if split not in ("", "train"):
        return None
    try:
        there = datasets.get_dataset_split_names(repository)
    except (OSError, ValueError, datasets.exceptions.DatasetsError):
        return None
    return next((f"{repository}:{word}" for word in _HELDOUT_WORDS if word in there), None)


def _set_aside(settings: Settings, dataset: SceneDataset, folder: Path) -> tuple[Path, Path]:
    """Files of rows to train on, and of others to evaluate."""
    trainer, num_rows = settings.trainer, len(dataset)
    num_heldout = min(settings.evaluation.num_images, max(1, int(_HELDOUT_SHARE * num_rows)))
    num_train = num_rows - num_heldout
    num_train = min(num_train, trainer.total_steps(num_train) * trainer.groups_per_step)
    order = np.random.default_rng(_SET_ASIDE_SEED).permutation(num_rows)
    rows = {"heldout": order[:num_heldout], "train": order[num_heldout:][:num_train]}
    folder.mkdir(parents=True, exist_ok=True)
    for split, indexes in rows.items():
        with parquet_writer(folder / f"{split}.parquet") as write:
            for index in sorted(map(int, indexes)):
                with suppress(InvalidInputError, TooLargeError):
                    sample = dataset[index]
                    decode_image(sample.image_bytes)
                    name, size = sample.image_id, (sample.width, sample.height)
                    write(graph_row(name, sample.image_bytes, name, size, sample.graph))
    return folder / "train.parquet", folder / "heldout.parquet"


def _instruction(samples: list[Sample]) -> list[str]:
    """A known vocabulary's instruction where the data use no other names, else the open one."""
    for name in ("vg150", "psg"):
        vocabulary = load_vocabulary(name)
        if _all_in(samples, vocabulary.objects, vocabulary.predicates):
            return [_set("data.template", "closed"), _set("data.vocabulary", name)]
    return [_set("data.template", "open")]


def _all_in(
    samples: list[Sample], objects: Sequence[str], predicates: Sequence[str] | None
) -> bool:
    known = set(map(normalise_name, objects))
    if any(normalise_name(o.category) not in known for s in samples for o in s.graph.objects):
        return False
    known = set(map(normalise_name, predicates or ()))
    relations = (r.predicate for s in samples for r in s.graph.relationships)
    return predicates is None or all(normalise_name(name) in known for name in relations)


def _token_limits(settings: Settings, samples: list[Sample]) -> list[str]:
    """Tokens for the longest prompt and its answer."""
    if (folder := tokenizer_folder(settings.model.path)) is None:
        return []
    try:
        lengths = PromptLength(settings, folder)
        prompt = max(
            lengths.text_tokens(image_messages(settings.data, box_space(settings.model, sample)))
            + lengths.image_tokens(sample)
            for sample in samples
        )
    except (SettingsError, InvalidInputError, UnavailableError):  # said in full before the start
        return []
    answer = max(settings.sampling.max_tokens, settings.evaluation.max_tokens)
    wanted = -(-(prompt + answer) // _TOKENS_AT_ONCE) * _TOKENS_AT_ONCE
    most = max(wanted, settings.rollout.max_model_len)
    row = prompt + settings.sampling.max_tokens
    batch = max(row, settings.trainer.tokens_per_micro_batch)
    return [f"rollout.max_model_len={most}", f"trainer.tokens_per_micro_batch={batch}"]


def _set(field: str, value: str) -> str:
    return f"{field}={json.dumps(value, ensure_ascii=False)}"
