"""What a run reads, looked at before a start: model, DeepSpeed's JSON, datasets, prompts.

`sgg-rl train --dry-run`, `doctor --config` and every start look at the same and say the same. It
takes neither a GPU nor a service.
"""

import sys
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Literal

from planning.preflight.check import CheckResult, check
from planning.preflight.model_folder import check_adapter, folder_problems
from planning.preflight.prompt_length import PromptLength, tokenizer_folder
from planning.preflight.rows import Source, is_of_the_hub, prompt_checks, source_checks
from planning.tensor_parallel import check_tensor_parallel
from reward_service.own_terms import check_weighed, load_own_terms
from reward_service.rubrics import rubric_for
from scene_data.dataset import Sample, SceneDataset
from scene_data.templates import check_instruction
from services.errors import InvalidInputError, SettingsError, TooLargeError, UnavailableError
from services.images import decode_image
from services.models.families import model_family, with_box_space
from services.printable import printable
from services.settings import Settings
from services.settings.checks import check_grpo, check_trackers, num_micro_batches

Job = Literal["train", "sft"]


def checked(
    settings: Settings, job: Job = "train", *, knows_model: bool = True, fetch: bool = True
) -> Settings:
    """Refuse a start that would end minutes later; warnings are printed.

    Args:
        settings: The run's settings.
        job: What is to be started.
        knows_model: `model.path` leads to the model from here, and now.
        fetch: The run reads what is on the hub from this machine, and now.

    Returns:
        The settings with `model.box_space` decided.

    Raises:
        SettingsError: With all that is wrong.
    """
    results = input_checks(settings, job, knows_model=knows_model, fetch=fetch)
    return _accepted(settings, results, knows_model=knows_model)


def checked_inference(
    settings: Settings,
    data: str | SceneDataset,
    *,
    limit: int | None = None,
    knows_model: bool = True,
    fetch: bool = True,
) -> Settings:
    """As `checked`, before a dataset's images are asked about.

    Args:
        settings: The run's settings.
        data: The dataset, or its name.
        limit: Only its first rows.
        knows_model: As there; running servers' model may lie on their hosts alone.
        fetch: As there.

    Raises:
        SettingsError: With all that is wrong.
    """
    source = Source(
        setting="the dataset",
        name=data if isinstance(data, str) else data.name or "the pictures",
        rows=None if isinstance(data, str) else data,
        answer="evaluation",
        num_rows=limit,
        annotated=False,
    )
    results = _model_and_rows(settings, [source], knows_model=knows_model, fetch=fetch)
    return _accepted(settings, results, knows_model=knows_model)


def checked_prediction(settings: Settings, sample: Sample, *, knows_model: bool = True) -> Settings:
    """As `checked`, before pictures are asked about.

    Args:
        settings: The run's settings.
        sample: The `first_readable` of them.
        knows_model: As `checked_inference`.

    Raises:
        SettingsError: With all that is wrong.
    """
    results, lengths = _model_and_lengths(settings, knows_model=knows_model, fetch=True)
    refuse(results)
    source = Source(setting="the pictures", name="", answer="evaluation")
    if all(result.state == "ok" for result in results):
        results += prompt_checks(source, {sample.image_id: sample}, settings, lengths)
    return _accepted(settings, results, knows_model=knows_model)


def first_readable(pictures: SceneDataset) -> Sample:
    """The first picture that can be read.

    Args:
        pictures: As `evaluation.inference.predict.picture_dataset` gives them.

    Raises:
        InvalidInputError: None can; it says why, for twenty at most.
    """
    faults = []
    for index in range(len(pictures)):
        try:
            sample = pictures[index]
            decode_image(sample.image_bytes)
            return sample
        except (InvalidInputError, TooLargeError) as error:
            faults.append(error.message)
    listed = "\n".join(f"  {fault}" for fault in faults[:20])
    raise InvalidInputError(f"no picture can be read:\n{listed}")


def checked_model(settings: Settings) -> Settings:
    """As `checked`, before a rollout server is started alone.

    Raises:
        SettingsError: With all that is wrong.
    """
    return _accepted(settings, _model(settings, fetch=True))


def _accepted(
    settings: Settings, results: list[CheckResult], *, knows_model: bool = True
) -> Settings:
    refuse(results)
    for result in results:
        if result.state == "warning":
            print(f"sgg-rl: warning: {printable(result.detail)}", file=sys.stderr)
    if knows_model:
        with suppress(UnavailableError):  # the hub may be reached where the job runs
            return with_box_space(settings)
    return settings


def refuse(results: list[CheckResult]) -> None:
    """Refuse what misses something.

    Raises:
        SettingsError: With the details of all that is missing.
    """
    details = [result.detail for result in results if result.state == "missing"]
    if len(details) == 1:
        raise SettingsError(details[0])
    if details:
        listed = "\n".join(f"- {detail}" for detail in details)
        raise SettingsError(f"{len(details)} things keep this from starting:\n{listed}")


def input_checks(
    settings: Settings, job: Job = "train", *, knows_model: bool = True, fetch: bool = False
) -> list[CheckResult]:
    """Look at all that a run reads; the arguments are those of `checked`."""
    found = [check("settings", lambda: _settings(settings, job)), *_deepspeed(settings)]
    sources = _sources(settings, job)
    found += _model_and_rows(settings, sources, knows_model=knows_model, fetch=fetch)
    return list({result.detail: result for result in found}.values())  # each thing once


def _model_and_rows(
    settings: Settings, sources: list[Source], *, knows_model: bool, fetch: bool
) -> list[CheckResult]:
    """Look at the model, and at datasets with the prompts that it gets for them."""
    model, lengths = _model_and_lengths(settings, knows_model=knows_model, fetch=fetch)
    rows = (source_checks(source, settings, lengths, fetch=fetch) for source in sources)
    return [*model, *chain.from_iterable(rows)]


def _model_and_lengths(
    settings: Settings, *, knows_model: bool, fetch: bool
) -> tuple[list[CheckResult], PromptLength | None]:
    """Look at the model; how it counts prompts, where it is here."""
    model = _model(settings, fetch=fetch) if knows_model else []
    if [result.state for result in model] != ["ok"]:
        return model, None
    folder = tokenizer_folder(settings.model.path)
    return model, None if folder is None else PromptLength(with_box_space(settings), folder)


def _settings(settings: Settings, job: Job) -> str:
    if job == "sft":
        num_micro_batches(settings)
    else:
        data = settings.data
        check_instruction(data.template, data.vocabulary, data.notation)
        check_grpo(settings)
        _check_rubric(settings)
    check_trackers(settings)
    return "they fit together"


def _check_rubric(settings: Settings) -> None:
    """Refuse a rubric that is none, or has no term for `data.task`; and terms that do not load.

    A term without a weight is refused too.
    """
    load_own_terms(settings.reward.terms)
    try:
        rubric = rubric_for(settings.reward.rubric, settings.data.task)
    except InvalidInputError as error:
        text = error.message.replace("body.rubric", "reward.rubric")
        named = text if text != error.message else f"reward.rubric: {text}"
        raise SettingsError(named) from error
    check_weighed(settings.reward.terms, rubric, setting="reward.terms")


def _deepspeed(settings: Settings) -> list[CheckResult]:
    file = settings.deepspeed.config_file
    if file is None:
        return []

    def find() -> str:
        from trainer.policy.deepspeed.config import deepspeed_config

        deepspeed_config(settings)
        return f"{file}, stage {settings.deepspeed.zero_stage}"

    return [check("DeepSpeed's JSON", find)]


def _model(settings: Settings, *, fetch: bool) -> list[CheckResult]:
    path = settings.model.path
    try:
        problems = _model_problems(settings)
    except SettingsError as error:
        problems = [error.message]
    except UnavailableError as error:
        return [CheckResult("model", "missing" if fetch else "info", error.message)]
    except OSError as error:
        problems = [f"model.path: {error.filename or path} cannot be read: {error.strerror}"]
    if problems:
        return [CheckResult("model", "missing", problem) for problem in problems]
    return [CheckResult("model", "ok", f"{path}, a {model_family(path).model_type}")]


def _model_problems(settings: Settings) -> list[str]:
    path = settings.model.path
    if not Path(path).exists() and not is_of_the_hub(path):
        raise SettingsError(
            f"model.path: there is no {path} (run from {Path.cwd()}): if it is what SFT makes, run "
            "that first (sgg-rl sft)"
        )
    check_adapter(path)
    with_box_space(settings)
    check_tensor_parallel(settings)
    return folder_problems(path) if Path(path).exists() else []


def _sources(settings: Settings, job: Job) -> list[Source]:
    data, trains = settings.data, job == "train"
    thinking = data.thinking and not trains
    sources = [
        Source(
            setting="data.train",
            name=data.train,
            task=data.task,
            thinking_column=settings.sft.thinking_column if thinking else None,
            answer="sampling" if trains else None,
        )
    ]
    if data.heldout is not None:
        sources.append(
            Source(
                setting="data.heldout",
                name=data.heldout,
                answer="evaluation" if trains else None,
                num_rows=settings.evaluation.num_images,
            )
        )
    return sources
