"""The commands that make a published table again: SFT, GRPO, inference, evaluation, row by row.

A row is a recipe, and its name that of the run: `…-sft` is fine-tuned, `…-grpo` is trained from it,
`…-zero` from the instruct model. `…-instruct`, which has no recipe of its own, is that model as it
comes. The tiny rows are the same chain on toy-scenes, small enough to be run on a CPU.
"""

import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal

from services.errors import ConflictError, SettingsError
from services.settings import Settings, load_settings

Stage = Literal["sft", "grpo", "infer", "evaluate"]
STAGES: tuple[Stage, ...] = ("sft", "grpo", "infer", "evaluate")
RECIPES = Path("configs/r1-sgg")
TINY_RECIPES = Path("configs/r1-sgg-tiny")
RUNS = Path("runs")

_HARDWARE = Path("configs/hardware")
_INFERENCE = "inference.toml"
"""Beside the recipes: what is laid over them to infer."""
_KINDS = ("instruct", "sft", "zero", "grpo")
_SPLITS = {
    "JosephZ/vg150_val_sgg_prompt": ("VG150 val", "vg150"),
    "JosephZ/psg_test_sg": ("PSG test", "psg"),
    "build/toy-tiny/heldout.parquet": ("toy-scenes held out", None),
}
"""Name and vocabulary of what is evaluated, which is closed in the tables' open rows too."""
_MAKE_TINY_DATA = "sgg-rl data make-toy build/toy-tiny --num-train 2048 --num-heldout 128"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    name: str
    recipe: Path
    hardware: Path | None
    runs: Path

    @property
    def kind(self) -> str:
        """Of `_KINDS`."""
        return self.name.rpartition("-")[2]

    @property
    def start(self) -> "Row | None":
        """The fine-tuned row that GRPO goes on from."""
        if self.kind != "grpo":
            return None
        return _row(
            self.name.replace("-grpo", "-sft"), self.recipe.parent, self.hardware, self.runs
        )

    @cached_property
    def settings(self) -> Settings:
        """Of its run."""
        return load_settings(self._configs, self._overrides)

    @property
    def options(self) -> list[str]:
        """The words of a command that say which run it is."""
        configs = [word for path in self._configs for word in ("--config", str(path))]
        return [*configs, *(word for item in self._overrides for word in ("--set", item))]

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return self.runs / self.name

    @property
    def model(self) -> str:
        """What is evaluated: a path, or a name on the hub."""
        if self.kind == "instruct":
            return self.settings.model.path
        return str(self.folder / ("model" if self.kind == "sft" else "checkpoint"))

    @property
    def _configs(self) -> list[Path]:
        return [self.recipe] if self.hardware is None else [self.recipe, self.hardware]

    @property
    def _overrides(self) -> list[str]:
        """What the recipe says itself, where the runs are in their usual place."""
        if self.runs == RUNS:
            return []
        start = [f"model.path={self.start.model}"] if self.start else []
        return [f"run.root={self.runs}", *start]


def find_rows(
    recipes: Path, pattern: str = "*", *, hardware: str | None = None, runs: Path = RUNS
) -> list[Row]:
    """The rows whose name fits, each after the one that it goes on from.

    Args:
        recipes: Folder of TOML files.
        pattern: As for file names: `vg150-closed-*`.
        hardware: A file of `configs/hardware` to lay over each recipe, without its `.toml`.
        runs: Folder of the runs.

    Raises:
        SettingsError: There are no such recipes, rows or hardware.
    """
    over = None if hardware is None else _HARDWARE / f"{hardware}.toml"
    if over is not None and not over.is_file():
        there = ", ".join(sorted(path.stem for path in _HARDWARE.glob("*.toml")))
        raise SettingsError(f"--hardware {hardware}: there are {there}")
    trained = {path.stem for path in recipes.glob("*-*.toml")}
    if not trained:
        raise SettingsError(f"no recipes in {recipes}: run this in the folder of the repository")
    names = trained | {name.replace("-sft", "-instruct") for name in trained if "-sft" in name}
    fitting = sorted((name for name in names if fnmatchcase(name, pattern)), key=_order)
    if not fitting:
        raise SettingsError(f"--row {pattern}: there are {', '.join(sorted(names, key=_order))}")
    return [_row(name, recipes, over, runs) for name in fitting]


def commands(rows: Sequence[Row], stages: Collection[Stage] = STAGES) -> Iterator[str]:
    """A bash script, line by line. What two rows need is done once.

    Args:
        rows: Of `find_rows`.
        stages: Those that are wanted.
    """
    yield "set -e"
    tuned: set[str] = set()
    for row in rows:
        yield f"\n# {row.name}"
        sft = row if row.kind == "sft" else row.start
        if "sft" in stages and sft and sft.name not in tuned:
            tuned.add(sft.name)
            yield _sgg_rl("sft", *sft.options)
        if "grpo" in stages and row.kind in ("zero", "grpo"):
            yield _sgg_rl("run", *row.options)
        if "infer" in stages:
            yield _infer(row)
        if "evaluate" in stages:
            yield _evaluate(row)


def run_tiny(runs: Path = RUNS, pattern: str = "*") -> int:
    """Run the tiny rows' script, which is kept beside their runs.

    Args:
        runs: Folder of the runs.
        pattern: Of the rows that are wanted.

    Returns:
        The exit code of the command that failed, or 0.

    Raises:
        ConflictError: The runs are there already.
    """
    rows = find_rows(TINY_RECIPES, pattern, runs=runs)
    for row in rows:
        if row.folder.exists():
            raise ConflictError(f"{row.folder} is there already: remove it, or say --runs FOLDER")
    script = runs / "reproduce-tiny.sh"
    runs.mkdir(parents=True, exist_ok=True)
    path = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    script.write_text("\n".join([path, _MAKE_TINY_DATA, *commands(rows), ""]))
    return subprocess.run(["bash", "-v", str(script)], check=False).returncode


def _row(name: str, recipes: Path, hardware: Path | None, runs: Path) -> Row:
    recipe = recipes / f"{name.replace('-instruct', '-sft')}.toml"
    return Row(name=name, recipe=recipe, hardware=hardware, runs=runs)


def _order(name: str) -> tuple[str, int]:
    family, _, kind = name.rpartition("-")
    return family, _KINDS.index(kind)


def _sgg_rl(*words: str) -> str:
    return shlex.join(["sgg-rl", *words])


def _infer(row: Row) -> str:
    settings, over = row.settings, row.recipe.parent / _INFERENCE
    layer = ["--config", str(over)] if over.is_file() else []
    return _sgg_rl(
        "infer",
        str(settings.data.heldout),
        *row.options,
        *layer,
        *("--model", row.model),
        *("--output", str(row.folder / "inference")),
    )


def _evaluate(row: Row) -> str:
    data = row.settings.data
    split, vocabulary = _SPLITS[str(data.heldout)]
    return _sgg_rl(
        "evaluate",
        str(row.folder / "inference/predictions.jsonl"),
        *("--reference", str(data.heldout), "--split", split, "--train", data.train),
        *(("--vocabulary", vocabulary) if vocabulary else ()),
        *("--output", str(row.folder / "evaluation")),
    )
