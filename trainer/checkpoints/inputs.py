"""What a run learns from: a resume that finds something else asks for a flag.

None of it decides whether a run can go on, but all of it what is learnt.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from scene_data.dataset import SceneDataset
from scene_data.templates import instruction_digest
from services.errors import SettingsError
from services.own_code import source_digest
from services.settings import Settings

logger = logging.getLogger(__name__)

FLAG = "--allow-changes"

Inputs = dict[str, str]
"""By the name of a setting, as a message shows it."""


def grpo_inputs(settings: Settings, dataset: SceneDataset) -> Inputs:
    """As `data_inputs`, with how answers are sampled and rewarded, and what is learnt of them."""
    rubric = settings.reward.rubric
    return (
        data_inputs(settings, dataset)
        | _base(settings)
        | {
            "sampling.temperature": f"{settings.sampling.temperature:g}",
            "sampling.top_k": str(settings.sampling.top_k),
            "sampling.top_p": f"{settings.sampling.top_p:g}",
            "sampling.constrain": str(settings.sampling.constrain).lower(),
            "reward.rubric": rubric
            if isinstance(rubric, str)
            else json.dumps(rubric, sort_keys=True),
            **dict(map(_term, settings.reward.terms)),
            **{f"algorithm.{name}": _shown(value) for name, value in settings.algorithm},
        }
    )


def _shown(value: object) -> str:
    """A setting as a file of settings has it."""
    return value if isinstance(value, str) else json.dumps(value)


def _base(settings: Settings) -> Inputs:
    """The model whose weights no checkpoint holds; nothing where all of them are trained."""
    if not (settings.trainer.partly_frozen or settings.lora.rank):
        return {}
    return {"model.path, whose frozen weights no checkpoint has": settings.model.name}


def _term(place: str) -> tuple[str, str]:
    """A term by its name, however its place is written, and what is known of its code.

    An installed module has nothing but its own name.
    """
    source, _, name = place.rpartition(":")
    is_file = source.endswith(".py") and Path(source).is_file()
    code = f"code of SHA-256 {source_digest(Path(source))}" if is_file else source
    return f"reward.terms {name}", code


def data_inputs(settings: Settings, dataset: SceneDataset) -> Inputs:
    """What is trained on, and how it is asked about.

    Example: `{"data.train": "annotations of SHA-256 9f86d081884c7d65", "data.template": "toy", …}`

    Args:
        settings: The run's.
        dataset: `data.train`, opened; its annotations are read.
    """
    data = settings.data
    inputs = {
        "data.train": f"annotations of SHA-256 {dataset.digest()[:16]}",
        "data.task": data.task,
        "data.notation": data.notation,
        "data.thinking": str(data.thinking).lower(),
        "data.template": data.template,
        "data.vocabulary": str(data.vocabulary),
    }
    if (files := instruction_digest(data.template, data.vocabulary)) is not None:
        inputs["the files of data.template and data.vocabulary"] = f"SHA-256 {files[:16]}"
    return inputs


def check_inputs(
    then: Mapping[str, str], now: Mapping[str, str], place: object, *, allow_changes: bool
) -> None:
    """Compare what a checkpoint was written with to what there is now.

    Args:
        then: The checkpoint's; what it does not say is not compared.
        now: The present settings'.
        place: Where the checkpoint is.
        allow_changes: Only say in the log what is another.

    Raises:
        SettingsError: Something is another; names all of it.
    """
    differences = [
        f"  {name}: {then[name]} then, {now.get(name, 'none')} now"
        for name in then
        if then[name] != now.get(name, "none")
    ]
    if not differences:
        return
    listed = "\n".join(differences)
    if allow_changes:
        logger.warning("this resume changes what the run learns from:\n%s", listed)
        return
    raise SettingsError(
        f"--resume: {place} was written with other settings:\n{listed}\nResume with the earlier "
        f"ones, or add {FLAG} to go on with those of now"
    )
