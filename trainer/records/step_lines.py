"""A file of JSON lines that a resume cuts back."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from services.host.sync import sync


class StepLines:
    """A file of JSON lines, each of a step, cut back when a run resumes from an earlier one.

    Args:
        file: It need not exist yet.
        aside: Where lines go that are cut off; else to `rolled_back.jsonl` beside the file.
    """

    def __init__(self, file: Path, aside: Path | None = None) -> None:
        self._file = file
        self._aside = aside or file.with_name("rolled_back.jsonl")

    def append(self, *rows: Mapping[str, Any] | BaseModel) -> None:
        """Add lines, all of them or none."""
        size = self._file.stat().st_size if self._file.exists() else 0
        try:
            with self._file.open("ab") as stream:
                # NaN and Infinity are not JSON.
                stream.write(b"".join(to_json(row, inf_nan_mode="null") + b"\n" for row in rows))
        except OSError:
            os.truncate(self._file, size)
            raise

    def sync(self) -> None:
        """Have all lines on disk."""
        if self._file.exists():
            sync(self._file)

    def cut_to(self, step: int) -> int:
        """Keep the lines of steps under `step`; later ones move aside.

        Line by line: the index of a long run is larger than memory should be.

        Returns:
            How many moved.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.touch()
        draft, dropped = self._file.with_suffix(".draft"), 0
        with self._file.open("rb") as lines, draft.open("wb") as kept:
            for line in lines:
                whole = line if line.endswith(b"\n") else line + b"\n"
                if _step_of(line) < step:
                    kept.write(whole)
                elif line.strip():
                    self._drop(whole)
                    dropped += 1
        sync(draft)
        draft.replace(self._file)
        sync(self._file.parent)
        return dropped

    def _drop(self, line: bytes) -> None:
        self._aside.parent.mkdir(parents=True, exist_ok=True)
        with self._aside.open("ab") as stream:
            stream.write(line)


def _step_of(line: bytes) -> int:
    """The step of a line; a line torn by a crash belongs to no kept step."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 60
