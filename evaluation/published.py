"""Published results (`published.csv`, in percent as printed), in tables of what may be compared."""

import csv
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from evaluation.result import EvaluationResult

_FILE = Path(__file__).with_name("published.csv")
_NUMBERS = ("failure_rate", "ap50", "recall", "mean_recall")
_PROMPTS = {"closed": ", names in the prompt", "open": ", no names in the prompt", "": ""}
_PROTOCOLS = {
    "sgb": "protocol sgb, over all of an answer",
    "cited": "protocols of the papers that it cites",
    "sgg-r3": "a protocol of its own, at 100",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One row of a paper's table. Shares are in 0..1, as everywhere here; None where none is given.

    Example: the row of `recipe == "vg150-closed-7b-soft"` has `recall` 0.2192.
    """

    method: str
    parameters: str
    """Such as `7B`; empty where the paper does not say"""
    rubric: str
    """Ours for the reward that it was trained with, where the paper says which"""
    recipe: str
    """Ours in `configs/r1-sgg`; empty where there is none"""
    failure_rate: float | None
    ap50: float | None
    recall: float | None
    """Over all of an answer: R1-SGG names no K, and its answers have few relations. Beside
    recall@100"""
    mean_recall: float | None
    """Beside mean_recall@100"""

    @property
    def label(self) -> str:
        """The method and its size."""
        size = f", {self.parameters}" if self.parameters not in self.method else ""
        return f"{self.method}{size}{f' ({self.rubric})' if self.rubric else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedTable:
    """Rows of one source, split, kind of prompt and protocol: no others may stand beside them.

    Example: `published_tables("vg150")[0].title`
    """

    paper: str
    """On arXiv"""
    number: str
    """The table's number in the paper; may be empty"""
    dataset: str
    """`vg150` or `psg`"""
    split: str
    """`train`, `val` or `test`"""
    prompt: str
    """`closed`: the names are in the prompt. `open`, or empty where the paper does not say"""
    protocol: str
    """`sgb`, or one that is not ours"""
    rows: tuple[PublishedRow, ...]

    @property
    def source(self) -> str:
        """Paper and table."""
        return f"arXiv {self.paper}" + (f" table {self.number}" if self.number else "")

    @property
    def title(self) -> str:
        """What its rows have in common."""
        return (
            f"{self.dataset.upper()} {self.split}{_PROMPTS[self.prompt]}: {self.source}, "
            f"{_PROTOCOLS[self.protocol]}"
        )

    def fits(self, result: EvaluationResult) -> bool:
        """Whether this result may stand beside the rows: protocol, split and prompt are theirs."""
        template = result.settings.get("template")
        return (
            self.protocol in result.protocols
            and self.split in result.split.lower().split()
            and template in (self.prompt, None)
        )


def published_tables(dataset: str | None) -> list[PublishedTable]:
    """The tables of a dataset (`vg150`, `psg`), in the order of the papers; none of any other."""
    return [table for table in _tables() if table.dataset == dataset]


@cache
def _tables() -> tuple[PublishedTable, ...]:
    with _FILE.open(newline="") as file:
        lines = sorted(csv.DictReader(file), key=_common)
    groups = groupby(lines, _common)
    return tuple(
        PublishedTable(**dict(common), rows=tuple(map(_row, rows))) for common, rows in groups
    )


def _common(line: dict[str, str]) -> tuple[tuple[str, str], ...]:
    names = ("paper", "number", "dataset", "split", "prompt", "protocol")
    return tuple((name, line[name]) for name in names)


def _row(line: dict[str, str]) -> PublishedRow:
    return PublishedRow(
        method=line["method"],
        parameters=line["parameters"],
        rubric=line["rubric"],
        recipe=line["recipe"],
        **{name: float(line[name]) / 100 if line[name] else None for name in _NUMBERS},
    )
