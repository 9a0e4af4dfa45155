"""A run's folder: its paths, the rows of its tables, how far it is, and its groups and events."""

from services.run_folder.paths import RunFolder, trained_model
from services.run_folder.progress import (
    LoggedError,
    RunProgress,
    TrainerSign,
    is_sft,
    last_error,
    read_progress,
    read_trainer,
    steps_done,
    time_left,
)
from services.run_folder.tables import (
    TAIL_BYTES,
    AnyRow,
    EvaluationRow,
    LedgerRow,
    NewRows,
    StepRow,
    TableFollower,
)

__all__ = [
    "TAIL_BYTES",
    "AnyRow",
    "EvaluationRow",
    "LedgerRow",
    "LoggedError",
    "NewRows",
    "RunFolder",
    "RunProgress",
    "StepRow",
    "TableFollower",
    "TrainerSign",
    "is_sft",
    "last_error",
    "read_progress",
    "read_trainer",
    "steps_done",
    "time_left",
    "trained_model",
]
