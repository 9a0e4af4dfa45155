"""`evaluating.json` of a run's folder: how far the evaluation is that goes on, for other processes.

Example: `{"step": 40, "label": "now", "done": 120, "total": 500}`
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from evaluation.inference.progress import Progress
from services.run_folder import RunFolder
from services.waiting import ended

_EVERY_S = 1.0
_GONE_S = 15.0
"""A file that nobody has written for so long is of a process that was killed."""


@dataclass(frozen=True, slots=True)
class EvaluationProgress:
    """How many of a version's held-out images have an answer."""

    step: int
    """The version."""
    label: str
    """`before` and `after`: no step goes on meanwhile; `now`: some do."""
    done: int
    total: int


def read_evaluation_progress(folder: RunFolder) -> EvaluationProgress | None:
    """What goes on; None where no evaluation does."""
    try:
        if time.time() - folder.evaluating.stat().st_mtime > _GONE_S:
            return None
        fields = json.loads(folder.evaluating.read_text())
        step, done, total = (int(fields[name]) for name in ("step", "done", "total"))
        return EvaluationProgress(step, str(fields["label"]), done, total)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@asynccontextmanager
async def shown_progress(
    folder: RunFolder, step: int, label: str, progress: Progress
) -> AsyncIterator[None]:
    """Write the file every second while the block runs; it is gone after that.

    A file that cannot be written is left out: it is only looked at.

    Args:
        folder: The run's.
        step: The version that is evaluated.
        label: As in `EvaluationProgress`.
        progress: Is counted on meanwhile.
    """

    async def write() -> None:
        fields = {"step": step, "label": label, "total": progress.total}
        while True:
            with suppress(OSError):
                _write(folder, fields | {"done": progress.done})
            await asyncio.sleep(_EVERY_S)

    writing = asyncio.create_task(write())
    try:
        yield
    finally:
        await ended(writing)
        with suppress(OSError):
            folder.evaluating.unlink(missing_ok=True)


def _write(folder: RunFolder, fields: dict[str, object]) -> None:
    draft = folder.evaluating.with_suffix(".draft")
    draft.write_text(json.dumps(fields))
    draft.replace(folder.evaluating)
