"""Published results, each with its dataset, split and protocol (`published.toml`)."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evaluation.result import Protocol

_FILE = Path(__file__).with_name("published.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One row of a paper's table. Shares are in 0..1, as everywhere here.

    Example: `published_rows("vg150")[0]` has `recall` 0.2375 on `val`, protocol `sgb`.
    """

    method: str
    source: str
    dataset: str
    """`vg150` or `psg`"""
    split: str
    protocol: Protocol
    """The one that its recall and mean recall follow; compare them with no other's"""
    failure_rate: float
    ap50: float
    recall: float
    """Over all of an answer: R1-SGG names no K, and its answers have few relations. Beside
    recall@100"""
    mean_recall: float
    """Beside mean_recall@100"""


def published_rows(dataset: str | None) -> list[PublishedRow]:
    """The rows of a dataset (`vg150`, `psg`); none of any other."""
    return [row for row in _rows() if row.dataset == dataset]


@cache
def _rows() -> tuple[PublishedRow, ...]:
    texts = ("method", "source", "dataset", "split", "protocol")
    return tuple(
        PublishedRow(**{key: row[key] if key in texts else row[key] / 100 for key in row})
        for row in tomllib.loads(_FILE.read_text())["rows"]
    )
