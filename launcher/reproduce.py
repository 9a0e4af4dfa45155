"""The commands that make a published table again: SFT, GRPO, inference, evaluation, row by row.

A row is a recipe, and its name that of the run: `…-sft` is fine-tuned, `…-grpo` is trained from it
(`…-relaxed` and `…-soft` with another reward), `…-zero` from the instruct model. `…-instruct` is
that model as it comes, and has no recipe of its own. The tiny rows are the same chain on
toy-scenes, small enough to be run on a CPU.
"""

import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Literal

from evaluation.published import published_tables
from services.bundled import bundled
from services.errors import ConflictError, SettingsError
from services.settings import Settings, load_settings

Stage = Literal["sft", "grpo", "infer", "evaluate"]
Place = Literal["here", "slurm"]
STAGES: tuple[Stage, ...] = ("sft", "grpo", "infer", "evaluate")
RECIPES = "r1-sgg"
"""Folder of the settings that ship."""
TINY_RECIPES = "r1-sgg-tiny"
RUNS = Path("runs")

_CONFIGS = bundled("configs")
_INFERENCE = "inference"
"""Beside the recipes: what is laid over them to infer."""
_KINDS = ("instruct", "sft", "zero", "grpo", "relaxed", "soft")
_FROM_SFT = ("grpo", "relaxed", "soft")
_GPUS_OF_A_HOST = 8
"""Rows that need more are printed as Slurm jobs, unless the caller says otherwise."""
_SPLITS = {
    "JosephZ/vg150_val_sgg_prompt": ("VG150 val", "vg150"),
    "JosephZ/psg_test_sg": ("PSG test", "psg"),
    "build/toy-tiny/heldout.parquet": ("toy-scenes held out", None),
}
"""Name and vocabulary of what is evaluated, which is closed in the tables' open rows too."""
_SLURM_HEAD = (
    "# bash THIS_SCRIPT cluster.toml: the [deploy] table of your cluster (docs/deploy/slurm.md)",
    "set -eu",
    "cluster=${1:?give a TOML file with the [deploy] table of your cluster: docs/deploy/slurm.md}",
)
_MAKE_TINY_DATA = "sgg-rl data make-toy build/toy-tiny --num-train 2048 --num-heldout 128"


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One line of a table."""

    name: str
    recipes: str
    hardware: str | None
    runs: Path

    @property
    def recipe(self) -> str:
        """Its own settings, or those of the fine-tuning from the same model."""
        return f"{self.recipes}/{self.name.replace('-instruct', '-sft')}"

    @property
    def kind(self) -> str:
        """One of `_KINDS`."""
        return self.name.rpartition("-")[2]

    @property
    def start(self) -> "TableRow | None":
        """The fine-tuned row that GRPO goes on from."""
        if self.kind not in _FROM_SFT:
            return None
        return replace(self, name=self.name.removesuffix(self.kind) + "sft")

    @cached_property
    def settings(self) -> Settings:
        """The settings of its run."""
        return load_settings([*map(Path, self._configs)], self._overrides)

    @property
    def options(self) -> list[str]:
        """The words of a command that say which run it is."""
        configs = [word for name in self._configs for word in ("--config", name)]
        return [*configs, *(word for item in self._overrides for word in ("--set", item))]

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return self.runs / self.name

    @property
    def model(self) -> str:
        """What is evaluated: a path, or a name on the hub."""
        if self.kind == "instruct":
            return self.settings.model.name
        return str(self.folder / ("model" if self.kind == "sft" else "checkpoint"))

    @property
    def _configs(self) -> list[str]:
        over = [] if self.hardware is None else [f"hardware/{self.hardware}"]
        return [self.recipe, *over]

    @property
    def _overrides(self) -> list[str]:
        """What the recipe says itself, where the runs are in their usual place."""
        if self.runs == RUNS:
            return []
        start = [f"model.path={self.start.model}"] if self.start else []
        return [f"run.root={self.runs}", *start]


def find_rows(
    recipes: str, pattern: str = "*", *, hardware: str | None = None, runs: Path = RUNS
) -> list[TableRow]:
    """The rows whose name fits, each after the one that it goes on from.

    Args:
        recipes: Folder of `configs`.
        pattern: As for file names: `vg150-closed-*`.
        hardware: A file of `configs/hardware` to lay over each recipe, without its `.toml`.
        runs: Folder of the runs.

    Raises:
        SettingsError: There are no such recipes, rows or hardware.
    """
    sizes = sorted(path.stem for path in _CONFIGS.glob("hardware/*.toml"))
    if hardware not in (None, *sizes):
        raise SettingsError(f"--hardware {hardware}: there are {', '.join(sizes)}")
    trained = {path.stem for path in _CONFIGS.glob(f"{recipes}/*-*.toml")}
    names = trained | {name.replace("-sft", "-instruct") for name in trained if "-sft" in name}
    fitting = sorted((name for name in names if fnmatchcase(name, pattern)), key=_order)
    if not fitting:
        raise SettingsError(f"--row {pattern}: there are {', '.join(sorted(names, key=_order))}")
    return [TableRow(name=name, recipes=recipes, hardware=hardware, runs=runs) for name in fitting]


def fitting_place(rows: Sequence[TableRow]) -> Place:
    """Where rows of this size run: on this host, or as Slurm jobs.

    Args:
        rows: Rows that `find_rows` found.
    """
    return "here" if max(map(_num_gpus, rows)) <= _GPUS_OF_A_HOST else "slurm"


def commands(
    rows: Sequence[TableRow], stages: Collection[Stage] = STAGES, place: Place = "here"
) -> Iterator[str]:
    """A bash script, line by line. What two rows need is done once.

    Args:
        rows: Rows that `find_rows` found.
        stages: Those that are wanted.
        place: `slurm` submits jobs that wait for one another, and leaves out the evaluation, which
            needs no GPU; the script's argument is a TOML file with the cluster's `[deploy]`.
    """
    yield from ["set -e"] if place == "here" else _SLURM_HEAD
    done: set[str] = set()
    for row in rows:
        yield f"\n# {_described(row)}"
        sft = row if row.kind == "sft" else row.start
        if "sft" in stages and sft and sft.name not in done:
            done.add(sft.name)
            yield _sgg_rl("sft", *sft.options) if place == "here" else _job(sft, "sft")
        if "grpo" in stages and row.kind not in ("instruct", "sft"):
            after = sft if "sft" in stages else None
            yield _sgg_rl("run", *row.options) if place == "here" else _job(row, "train", after)
        if "infer" in stages:
            trained = "sft" if row.kind == "sft" else "grpo"
            after = row if row.kind != "instruct" and trained in stages else None
            yield _infer(row) if place == "here" else _job(row, "infer", after)
        if "evaluate" in stages and (place == "here" or len(stages) == 1):
            yield _evaluate(row)
    if place == "slurm" and len(stages) > 1:
        yield "\n# When the jobs are over: the same command with --stage evaluate prints the rest."


def run_tiny(runs: Path = RUNS, pattern: str = "*") -> int:
    """Run the tiny rows' script, which is kept beside their runs.

    Args:
        runs: Folder of the runs.
        pattern: The rows that are wanted, as for file names.

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


def _order(name: str) -> tuple[str, int]:
    family, _, kind = name.rpartition("-")
    return family, _KINDS.index(kind)


def _num_gpus(row: TableRow) -> int:
    settings = row.settings
    ranks, sampling = settings.trainer.num_ranks, settings.num_rollout_gpus
    return max(ranks, sampling) if settings.shares_gpus else ranks + sampling


def _described(row: TableRow) -> str:
    """Its name, and what was published of it."""
    dataset, _, _ = row.name.partition("-")
    found = [
        (table, line)
        for table in published_tables(dataset)
        for line in table.rows
        if line.recipe == row.name
    ]
    if not found:
        return row.name
    table, line = found[0]
    numbers = (line.failure_rate, line.ap50, line.recall, line.mean_recall)
    failures, ap50, recall, mean_recall = (f"{100 * (number or 0):.2f}" for number in numbers)
    return (
        f"{row.name}: {table.source}, {table.dataset.upper()} {table.split}, {table.protocol}: "
        f"failures {failures}, AP50 {ap50}, recall {recall}, mean recall {mean_recall}"
    )


def _sgg_rl(*words: str) -> str:
    return shlex.join(["sgg-rl", *words])


def _job(
    row: TableRow, job: Literal["sft", "train", "infer"], after: TableRow | None = None
) -> str:
    """A line that submits a job; a training keeps its id in a variable of the row's name."""
    words = [*row.options]
    if job == "infer":
        words += [*_inference_layer(row), "--set", f"model.path={row.model}"]
    line = _sgg_rl("slurm", "submit", "--job", job, *words) + ' --config "$cluster"'
    line += f' --after "${_variable(after)}"' if after else ""
    return line if job == "infer" else f"{_variable(row)}=$({line} --parsable)"


def _variable(row: TableRow) -> str:
    return row.name.replace("-", "_")


def _infer(row: TableRow) -> str:
    return _sgg_rl(
        "infer",
        str(row.settings.data.heldout),
        *row.options,
        *_inference_layer(row),
        *("--model", row.model),
        *("--output", str(row.folder / "inference")),
    )


def _inference_layer(row: TableRow) -> list[str]:
    over = f"{row.recipes}/{_INFERENCE}"
    return ["--config", over] if (_CONFIGS / f"{over}.toml").is_file() else []


def _evaluate(row: TableRow) -> str:
    data = row.settings.data
    split, vocabulary = _SPLITS[str(data.heldout)]
    return _sgg_rl(
        "evaluate",
        str(row.folder / "inference/predictions.jsonl"),
        *("--reference", str(data.heldout), "--split", split, "--train", data.train),
        *(("--vocabulary", vocabulary) if vocabulary else ()),
        *("--output", str(row.folder / "evaluation")),
    )
