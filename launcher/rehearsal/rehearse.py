"""`sgg-rl rehearse`: the recipe's chain on this machine, and what it says of the full run."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.folder import prepare_folder, run_lock
from launcher.rehearsal.budget import fitting_tokens, measured_pace, threads_on_cpu
from launcher.rehearsal.chain import Chain, Stage
from launcher.rehearsal.cut import (
    NUM_IMAGES,
    NUM_ROWS,
    Change,
    changes,
    cut_settings,
    sft_settings,
)
from launcher.rehearsal.memory import PeakMemory
from launcher.rehearsal.model import base_model, write_cut_model
from launcher.rehearsal.rows import write_rows
from launcher.views.terminal import Say
from planning.estimate import estimate_memory, estimate_sft_memory
from planning.preflight.gpus import gpus_are_wanted, visible_gpus
from planning.preflight.inputs import input_checks
from planning.preflight.prompt_length import PromptLength
from planning.preflight.rows import opened
from planning.shapes import model_shape
from scene_data.messages import box_space, image_messages
from scene_data.templates import answer_text
from services.errors import InvalidInputError, SettingsError, SggError
from services.host.gpu import GIB
from services.models.families import with_box_space
from services.run_folder import RunFolder
from services.settings import Settings

RESULT = "rehearsal.json"
"""In the rehearsal's folder"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """The memory of a training process, in GiB."""

    job: str
    """`SFT` or `GRPO`"""
    estimated: float
    """By the estimate of `--dry-run`, for what was run here."""
    measured: float | None
    """None where it was not come to."""
    full: float
    """The same estimate for the recipe as it is."""
    limit: float | None
    """`cluster.gpu_memory_gib`"""

    @property
    def ratio(self) -> float | None:
        """Measured over estimated."""
        return None if self.measured is None else self.measured / self.estimated

    @property
    def scaled(self) -> float | None:
        """What the full run needs, were the estimate off there as it is here."""
        return None if self.ratio is None else self.full * self.ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What a rehearsal found."""

    folder: Path
    stages: list[Stage]
    cut: list[Change]
    model: str
    """The start model's weights and vocabulary"""
    layers: tuple[int, int]
    """Here, and of the recipe"""
    peaks: dict[str, float]
    """GiB of each process, of the host's memory"""
    gpu_peaks: dict[str, float]
    memory: list[MemoryRow]
    refused: list[str]
    """What keeps the full run from starting from here, or would not fit"""

    @property
    def has_passed(self) -> bool:
        """Whether every stage has."""
        return all(stage.state == "passed" for stage in self.stages)

    def values(self) -> dict[str, Any]:
        """For JSON."""
        derived = [asdict(row) | {"ratio": row.ratio, "scaled": row.scaled} for row in self.memory]
        return asdict(self) | {"folder": str(self.folder), "memory": derived}


def rehearse(recipe: Settings, *, minutes: float, layers: int, say: Say) -> Rehearsal:
    """Run the chain in `<run folder>-rehearsal`; weights are removed from it at the end.

    Args:
        recipe: The full run's settings.
        minutes: That it may take on a CPU, where completions are cut to fit.
        layers: Of text and of vision.
        say: Takes lines for people.

    Raises:
        ConflictError: A rehearsal of this run is going on.
        SettingsError: The recipe names no model, or one of which nothing is known here.
    """
    base = base_model(recipe.model.path)
    recipe = with_box_space(recipe.changed(model={"path": base}))
    folder = recipe.run.folder.with_name(f"{recipe.run.name}-rehearsal").absolute()
    with run_lock(folder):
        prepare_folder(RunFolder(folder), resume=False)
        return _Work(recipe, folder, layers, say).do(60 * minutes)


class _Work:
    def __init__(self, recipe: Settings, folder: Path, layers: int, say: Say) -> None:
        self._recipe, self._folder, self._layers, self._say = recipe, folder, layers, say
        self._memory = PeakMemory()
        self._on_gpu = gpus_are_wanted()
        self._cut = cut_settings(
            recipe,
            folder,
            num_gpus=len(visible_gpus()) if self._on_gpu else 0,
            max_tokens=recipe.sampling.max_tokens,
        )
        self._chain = Chain(
            settings=self._cut,
            memory=self._memory,
            say=say,
            environment={} if self._on_gpu else threads_on_cpu(),
        )
        self._model = ""
        self._lengths = (0, 0)
        """Tokens of the longest prompt and annotated answer"""
        self._refused: Future[list[str]] | None = None

    def do(self, seconds: float) -> Rehearsal:
        """All stages, or those up to the first that fails."""
        with ThreadPoolExecutor(1) as beside:
            with suppress(SggError):  # the stage has it
                heldout = self._rows()
                self._start_model()
                self._prompts(seconds)
                # A hub that is not reached is asked again and again, half a minute for each name.
                self._refused = beside.submit(self._refusals)
                self._chain.sft()
                self._use(model={"path": str(sft_settings(self._cut).run.files.model)})
                self._chain.grpo()
                self._chain.infer(heldout)
                self._chain.evaluate(heldout)
            found = self._found()
        if found.has_passed:
            self._remove_weights()
        (self._folder / RESULT).write_text(json.dumps(found.values(), default=str, indent=1))
        return found

    def _use(self, **sections: dict[str, object]) -> None:
        self._cut = self._chain.settings = self._cut.changed(**sections)

    def _rows(self) -> str:
        """The recipe's own rows where they are here; the held-out ones."""
        data = self._recipe.data
        with self._chain.stage("data rows") as said:
            try:
                rows = len(opened(data.train, data.task))
                heldout = data.heldout or data.train
                opened(heldout, data.task)
                said.append(f"{rows} of {data.train}")
            except InvalidInputError:
                train, kept = (self._folder / f"data/{n}.parquet" for n in ("train", "heldout"))
                write_rows(self._recipe, train, NUM_ROWS)
                write_rows(self._recipe, kept, NUM_IMAGES)
                self._use(data={"train": str(train), "heldout": str(kept)})
                said.append("made up, of VG150's size")
                return str(kept)
        self._use(data={"heldout": heldout})
        return heldout

    def _start_model(self) -> None:
        with self._chain.stage("start model") as said:
            start = self._folder / "start"
            self._model = write_cut_model(self._cut, start, self._layers)
            self._use(model={"path": str(start)})
            said.append(f"{model_shape(str(start)).num_parameters / 1e6:,.0f} M parameters")

    def _prompts(self, seconds: float) -> None:
        """Count prompts, and choose how long completions are."""
        with self._chain.stage("prompts") as said:
            self._lengths = self._measured_lengths()
            prompt, answer = self._lengths
            said.append(f"of up to {prompt} tokens, annotated answers of up to {answer}")
            if not self._on_gpu:  # there completions are the recipe's
                said.append(self._fit(seconds))
                self._check_room()

    def _measured_lengths(self) -> tuple[int, int]:
        settings = self._cut
        counts = PromptLength(settings, Path(settings.model.path))
        rows = opened(settings.data.train, settings.data.task)
        prompts, answers = [], []
        for sample in (rows[index] for index in range(min(NUM_ROWS, len(rows)))):
            space = box_space(settings.model, sample)
            text = counts.text_tokens(image_messages(settings.data, space))
            prompts.append(text + counts.image_tokens(sample))
            answer = answer_text(
                sample.graph,
                space,
                width=sample.width,
                height=sample.height,
                task=settings.data.task,
                notation=settings.data.notation,
            )
            answers.append(counts.answer_tokens(answer))
        return max(prompts), max(answers)

    def _fit(self, seconds: float) -> str:
        """Cut completions to the time that there is on this CPU."""
        shape, pace = model_shape(self._cut.model.path), measured_pace()
        tokens = fitting_tokens(self._cut, shape, self._lengths[0], pace, seconds)
        longest = min(tokens, self._cut.evaluation.max_tokens)
        self._use(sampling={"max_tokens": tokens}, evaluation={"max_tokens": longest})
        return (
            f"completions of {tokens}, for which there is the time at "
            f"{pace.flops / 1e9:.0f} GFLOP/s and {pace.bytes_per_s / 1e9:.1f} GB/s"
        )

    def _check_room(self) -> None:
        """Refuse a trainer for which this machine has not the memory.

        Raises:
            SettingsError: With what to do.
        """
        needed = max(row.estimated for row in self._memory_rows())
        free = psutil.virtual_memory().available / GIB
        if needed > free:
            raise SettingsError(
                f"a training process needs {needed:.1f} GiB with {self._layers} layers, and "
                f"{free:.1f} GiB are free: lower --layers, or use a larger machine"
            )

    def _found(self) -> Rehearsal:
        memory = list(self._memory_rows())
        refused = self._refused.result() if self._refused else self._refusals()
        recipe_layers = model_shape(self._recipe.model.path).num_layers
        return Rehearsal(
            folder=self._folder,
            stages=self._chain.stages(),
            cut=changes(self._recipe, self._cut),
            model=self._model,
            layers=(self._layers, recipe_layers),
            peaks=self._memory.host,
            gpu_peaks=self._memory.gpu,
            memory=memory,
            refused=[*refused, *_too_large(memory)],
        )

    def _memory_rows(self) -> Iterator[MemoryRow]:
        """What the estimate takes for what was run: its own longest prompt and answer."""
        if not self._lengths[0]:
            return
        here, full = (model_shape(s.model.path) for s in (self._cut, self._recipe))
        prompt, answer = self._lengths
        peaks = self._memory.gpu if self._on_gpu else self._memory.host
        jobs = (
            ("SFT", "sft", estimate_sft_memory, prompt + answer),
            ("GRPO", "trainer", estimate_memory, prompt + self._cut.sampling.max_tokens),
        )
        for job, process, estimate, length in jobs:
            as_run = self._cut.changed(rollout={"max_model_len": length})
            yield MemoryRow(
                job=job,
                estimated=sum(estimate(as_run, here, on_gpu=self._on_gpu).values()),
                measured=peaks.get(process),
                full=sum(estimate(self._recipe, full).values()),
                limit=self._recipe.cluster.gpu_memory_gib,
            )

    def _refusals(self) -> list[str]:
        found = input_checks(self._recipe, knows_model=False)
        return [one.detail for one in found if one.state == "missing"]

    def _remove_weights(self) -> None:
        run = self._cut.run.files
        for weights in (self._folder / "start", self._folder / "sft/model", run.checkpoint):
            shutil.rmtree(weights, ignore_errors=True)


def _too_large(memory: list[MemoryRow]) -> Iterator[str]:
    for row in memory:
        needed = max(row.full, row.scaled or 0.0)
        if row.limit is not None and needed > row.limit:
            yield (
                f"{row.job}: a trainer GPU needs {needed:.1f} GiB, and cluster.gpu_memory_gib is "
                f"{row.limit:g}: `--dry-run` says what takes it"
            )
