"""The rows that are trained on, opened by all ranks."""

import numpy as np
from pydantic import Base64Bytes

from scene_data.dataset import SceneDataset, open_dataset
from services.settings.run import DataSettings
from trainer.ranks.group import Ranks


def open_training_rows(
    ranks: Ranks, data: DataSettings, thinking_column: str | None = None
) -> SceneDataset:
    """`data.train`; every rank calls this. Only rank 0 reads annotations, and says what is usable.

    Args:
        ranks: The trainer's.
        data: The run's.
        thinking_column: As `open_dataset`.

    Raises:
        InvalidInputError: As `open_dataset`, on rank 0; or this rank has another number of rows.
    """
    opened: list[SceneDataset] = []

    def usable_rows() -> bytes:
        opened.append(open_dataset(data.train, thinking_column=thinking_column, task=data.task))
        return opened[0].check.usable.tobytes()

    usable = np.frombuffer(ranks.from_main(usable_rows, Base64Bytes), dtype=np.bool_)
    if opened:
        return opened[0]
    return open_dataset(data.train, thinking_column=thinking_column, task=data.task, usable=usable)
