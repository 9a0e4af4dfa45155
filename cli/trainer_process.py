"""This process as the trainer: checked, one of the ranks, with its log and its results."""

import logging
import os
import sys
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, NoReturn

from services.errors import SettingsError
from services.host.environment import environment_value, start_command, use_large_pages
from services.host.imports import many_imports
from services.models.families import with_box_space
from services.settings import Settings, dump_settings, load_settings
from services.telemetry import log_beside, setup_logging
from trainer.ranks.stop import EXIT_STOPPED, stop_request

if TYPE_CHECKING:
    from planning.preflight.inputs import Job
    from trainer.records.evaluation import StepEvaluation

logger = logging.getLogger(__name__)


def train(settings: Settings, *, resume: bool, allow_changes: bool) -> None:
    """Run the trainer: this process, or as many as `trainer.num_ranks` below it."""
    use_large_pages()
    settings, rank = _begun(settings, "train", resume=resume)
    setup_logging(f"trainer[{rank}]", beside=log_beside(settings.run.files.logs, f"trainer-{rank}"))
    if rank == 0:
        _keep_settings(settings)
    with stop_request() as stop:
        with many_imports():
            from cli.views.progress import shown
            from trainer.train import train as run_training

        with shown(settings) if rank == 0 else nullcontext():
            is_done = run_training(
                settings,
                resume=resume,
                allow_changes=allow_changes,
                evaluation=_evaluation(settings, rank),
                stop=stop,
            )
    if not is_done:
        _stopped(rank)
    if rank == 0:
        _leave_results(settings)


def _keep_settings(settings: Settings) -> None:
    """Write `config.toml`, unless a start by the one that is there would be the same."""
    file = settings.run.files.config
    with suppress(SettingsError):
        if file.exists() and load_settings([file]) == settings:
            return
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".draft")
    draft.write_text(dump_settings(settings))
    draft.replace(file)


def _leave_results(settings: Settings) -> None:
    """A run whose pictures cannot be drawn is done all the same."""
    from evaluation.of_a_run.results import ResultsProcess

    for file in ResultsProcess(settings.run.files).finish():
        logger.info("wrote %s", file)


def _evaluation(settings: Settings, rank: int) -> "StepEvaluation | None":
    if rank or not (settings.evaluation.every or settings.data.heldout):
        return None
    from evaluation.of_a_run.during import DuringTraining

    return DuringTraining(settings)


def sft(settings: Settings, *, resume: bool, allow_changes: bool) -> None:
    """Run supervised fine-tuning, on as many processes as the trainer's."""
    use_large_pages()
    settings, rank = _begun(settings, "sft", resume=resume)
    setup_logging(f"sft[{rank}]", beside=log_beside(settings.run.files.logs, f"sft-{rank}"))
    if rank == 0:
        _keep_settings(settings)
    with stop_request() as stop:
        with many_imports():
            from cli.views.progress import shown
            from trainer.sft.train import run_sft

        with shown(settings) if rank == 0 else nullcontext():
            folder = run_sft(settings, resume=resume, allow_changes=allow_changes, stop=stop)
    if folder is None:
        _stopped(rank)
    elif rank == 0:
        _leave_results(settings)
        print(f"wrote {folder}")


def _begun(settings: Settings, job: "Job", *, resume: bool) -> tuple[Settings, int]:
    """The settings with `box_space` decided, and this process's rank.

    One process of all looks at what the run reads.
    """
    from planning.preflight.trainer import check_trainer

    with stop_request():  # which ends the process at once: nothing is done yet
        check_trainer(settings)
        if environment_value("RANK") in (None, "0"):
            from planning.preflight.folders import check_no_checkpoints
            from planning.preflight.inputs import checked
            from planning.preflight.services import check_run_name

            if not resume:
                check_no_checkpoints(settings.run.files)
            if job == "train":
                check_run_name(settings)
            settings = checked(settings, job)
        else:
            settings = with_box_space(settings)
    return settings, _rank_of(settings)


def _stopped(rank: int) -> NoReturn:
    """End at once: Python takes seconds of computing to take itself apart, for nothing."""
    if rank == 0:
        go_on = start_command("--resume")
        print(f"sgg-rl: stopped with a checkpoint: go on with `{go_on}`", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the terminal may be gone
            stream.flush()
    os._exit(EXIT_STOPPED)


def _rank_of(settings: Settings) -> int:
    """This process among `trainer.num_ranks`; alone it starts them all and ends as they do."""
    rank = environment_value("RANK")
    if rank is None and settings.trainer.num_ranks > 1:
        from launcher.ranks import run_ranks

        sys.exit(run_ranks(settings.trainer.num_ranks, ["-m", "cli.main", *sys.argv[1:]]))
    return int(rank or 0)
