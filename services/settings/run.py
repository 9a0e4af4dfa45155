"""Settings of what a run is about: `[run]`, `[model]` and `[data]`."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from services.bundled import TOY_MODELS, toy_start
from services.run_folder import RunFolder
from services.schemas.rewards import Notation, Task
from services.settings.section import LocalPath, PathOrName, Section

_files = lru_cache(maxsize=16)(RunFolder)


class RunSettings(Section):
    """Identity and place of a run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """Names the folder and the Redis namespace."""
    root: LocalPath = Path("runs")
    """Where run folders are made."""
    seed: int = Field(default=0, ge=0)
    """The seed of everything: data order, sampling, initial noise."""

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.root / self.name

    @property
    def files(self) -> RunFolder:
        """Each path in the run's folder."""
        return _files(self.folder)


class ModelSettings(Section):
    """The policy."""

    path: PathOrName
    """A Hugging Face folder, a hub name, or `toy-start` or `toy-start-2`, the demo's models."""
    box_space: Literal["auto", "relative_1000", "pixels", "relative_1"] = "auto"
    """How the model writes boxes: `auto` as its family does (`docs/models.md`), `pixels` in pixels
    of the resized input."""
    box_space_override: bool = False
    """Take `box_space` though it is not the family's: the model was trained to write it."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The weights' type, in training and in sampling alike."""
    head_dtype: Literal["float32", "model"] = "float32"
    """Type of the logits, in GRPO's training and in sampling alike. `model` rounds them to `dtype`:
    in bfloat16 a logit near 23 is off by up to 0.06, on both sides by other amounts."""
    min_pixels: int = Field(default=4 * 28 * 28, ge=28 * 28)
    """Images with fewer pixels are enlarged. The same for trainer, sampler and boxes."""
    max_pixels: int = Field(default=512 * 28 * 28, ge=28 * 28)
    """Images with more pixels are reduced."""

    @field_validator("path")
    @classmethod
    def _of_the_demo(cls, path: str) -> str:
        return str(toy_start(path)) if path in TOY_MODELS else path

    @field_serializer("path", when_used="json")
    def _named(self, path: str) -> str:
        """In files that another machine may read, where the demo's models are elsewhere."""
        return next((name for name in TOY_MODELS if path == str(toy_start(name))), path)

    @property
    def name(self) -> str:
        """The model as settings name it."""
        return self._named(self.path)


class DataSettings(Section):
    """What is trained and evaluated on."""

    train: PathOrName
    """A path or hub name in one of the layouts of `docs/data.md`."""
    heldout: PathOrName | None = None
    """The same, never trained on. Without it, the first rows of `train` are only looked at."""
    task: Task = "sgg"
    """What the model is asked for, rewarded and evaluated by: scene graphs, objects with boxes
    (`det`), or triplets of names (`cls`)."""
    notation: Notation = "json"
    """What graphs are written in: `json`, or `compact`, a line for each object and relationship in
    about half as many tokens (`docs/data.md`). Instruction, targets and rewards follow it."""
    template: PathOrName = "open"
    """The instruction that goes with each image: `toy`, `open`, `closed` with a list of the names
    that may be used, or the path of a text file with one's own (`docs/data.md`)."""
    vocabulary: PathOrName | None = None
    """Those names, with `closed` or a file: `vg150`, `psg`, or the path of a file."""
    thinking: bool = False
    """Ask for `<think>…</think>` before the answer: in SFT, in GRPO (whose `format` term then
    requires it) and in evaluation."""

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        listed = {"toy": False, "open": False, "closed": True}.get(self.template)
        if listed is not None and listed != (self.vocabulary is not None):
            raise ValueError(
                "template = 'closed' and vocabulary go together: set both or none (a template of "
                "your own may do with either)"
            )
        return self
