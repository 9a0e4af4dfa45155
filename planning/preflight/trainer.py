"""What the trainer's processes need, before torch is loaded."""

from planning.preflight.bare import check_start
from planning.preflight.folders import check_run_folder
from planning.preflight.gpus import check_gpus
from services.host.environment import environment_value
from services.settings import Settings
from services.settings.checks import check_trackers


def check_trainer(settings: Settings) -> None:
    """Refuse a trainer, or a rank of it, that could not work here.

    Raises:
        SettingsError: With what to do.
    """
    check_trackers(settings)
    check_start("caches")
    check_run_folder(settings.run.folder)
    rank, local = environment_value("RANK"), environment_value("LOCAL_RANK")
    if rank is None:
        num_ranks = settings.trainer.num_ranks
        check_gpus(num_ranks, who=f"the trainer (trainer.num_ranks = {num_ranks})")
    else:
        check_gpus(int(local or 0) + 1, who=f"rank {rank} of the trainer, LOCAL_RANK {local or 0},")
