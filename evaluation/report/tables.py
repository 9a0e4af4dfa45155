"""The report's tables: which rows they have, in which order, and how numbers are written."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from evaluation.result import PROTOCOLS, EvaluationResult, Protocol

NONE = "\N{EN DASH}"
MEASURES = {
    "recall": "Recall",
    "recall_pooled": "Recall, pooled",
    "mean_recall": "Mean recall",
    "mean_recall_pooled": "Mean recall, pooled",
    "zero_shot_recall": "Zero-shot recall",
    "triplet_precision": "Triplet precision",
    "triplet_recall": "Triplet recall",
    "triplet_f1": "Triplet F1",
}
"""In the order of the table; others follow under their own names."""
OBJECT_MEASURES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "coco_ap": "COCO AP",
    "coco_ap50": "COCO AP50",
    "coco_ap75": "COCO AP75",
    "precision": "precision, strict",
    "recall": "recall, strict",
    "f1": "F1, strict",
    "mean_iou": "mean IoU",
}
ANSWERS = {
    "failure_rate": "Failure rate",
    "unconstrained_failure_rate": "Failure rate, decoding unconstrained",
    "relations_per_image": "Relations per image",
    "reference_relations_per_image": "Relations per image, reference",
    "objects_per_image": "Objects per image",
    "reference_objects_per_image": "Objects per image, reference",
    "tokens_per_image": "Tokens per image",
    "duplicate_objects": "Objects that repeat an earlier one",
    "duplicate_relations": "Relations that repeat an earlier one",
}
SHARES = ("_rate", "duplicate_objects", "duplicate_relations")
"""How keys of `answers` end that are shares; the others are counts"""
MAIN_SETTINGS = (
    "model",
    "policy_version",
    "temperature",
    "max_tokens",
    "constrain",
    "thinking",
    "template",
    "vocabulary",
)
"""Settings of the predictions in the head of the page; the others are folded away."""
FAILURES = {
    "no_answer": "nothing that looks like an answer",
    "invalid_json": "what stands there is no JSON",
    "truncated": "the answer stops inside its JSON",
    "schema_violation": "JSON of another shape",
    "too_large": "over the limits on size",
    "no_prediction": "no line for the image",
    "refused": "the server refused the prompt",
    "unreadable": "the image cannot be opened",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A value and its interval, both in words."""

    value: str
    interval: str = ""


@dataclass(frozen=True, slots=True)
class MeasureRow:
    """One measure and its cells, one a column."""

    label: str
    cells: list[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallTable:
    """Every recall of every protocol."""

    columns: tuple[tuple[Protocol, tuple[str, ...]], ...]
    """The cuts of each protocol: `@20`, or empty for one without a cut"""
    sections: tuple[tuple[str, tuple[MeasureRow, ...]], ...]
    """Title and rows"""


def percent(value: float | None, digits: int = 2, scale: float = 100.0) -> str:
    """A share as a number of per cent; a dash where it is undefined.

    Args:
        value: Of 0..1.
        digits: After the point.
        scale: 1 for what is no share.
    """
    if value is None or math.isnan(value):
        return NONE
    return f"{scale * value:.{digits}f}"


def count(value: float | None) -> str:
    """A whole number; a dash where there is none."""
    return NONE if value is None else f"{value:,.0f}"


def percent_cell(value: float | None, interval: tuple[float, float] | None) -> Cell:
    """Per cent with the interval to a tenth of one."""
    if interval is None or value is None or any(map(math.isnan, interval)):
        return Cell(value=percent(value))
    low, high = (percent(end, 1) for end in interval)
    return Cell(value=percent(value), interval=f"{low} to {high}")


def recall_table(result: EvaluationResult) -> RecallTable:
    """With a protocol's graph constraint, then without: a row a measure, a column a cut."""
    keys = {protocol: _recalls(values) for protocol, values in result.protocols.items()}
    columns = tuple(
        (protocol, tuple(dict.fromkeys(_cut(key) for key in sorted_keys(keys[protocol]))))
        for protocol in PROTOCOLS
        if keys.get(protocol)
    )
    measures = sorted_keys(key.partition("@")[0] for of_one in keys.values() for key in of_one)
    sections = []
    for title, without in (
        ("graph constraint (sgb: rows as written)", False),
        ("no graph constraint (ng)", True),
    ):
        rows = tuple(
            MeasureRow(
                measure_label(measure),
                [_cell(result, name, measure + cut) for name, cuts in columns for cut in cuts],
            )
            for measure in measures
            if measure.startswith("ng_") == without
        )
        if rows:
            sections.append((title, rows))
    return RecallTable(columns=columns, sections=tuple(sections))


def triplet_rows(result: EvaluationResult) -> list[MeasureRow]:
    """What of `strict` is no recall at a cut: precision, recall and F1 of all predictions."""
    values = result.protocols.get("strict", {})
    keys = sorted_keys(set(values) - set(_recalls(values)))
    return [MeasureRow(measure_label(key), [_cell(result, "strict", key)]) for key in keys]


def _recalls(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if "@" in key or key.startswith("ng_")]


def _cut(key: str) -> str:
    _, at, k = key.partition("@")
    return at + k


def _cell(result: EvaluationResult, protocol: Protocol, key: str) -> Cell:
    values, intervals = result.protocols.get(protocol, {}), result.intervals.get(protocol, {})
    return percent_cell(values[key], intervals.get(key)) if key in values else Cell(value="")


def sorted_keys(keys: Iterable[str]) -> list[str]:
    """Metric keys once each, in the order of `MEASURES`, by K; counts of images left out."""
    order = list(MEASURES)

    def place(key: str) -> tuple[bool, int, str, int]:
        ng, base, k = _parts(key)
        return ng, order.index(base) if base in order else len(order), base, k

    return sorted(set(keys) - {"num_images"}, key=place)


def measure_label(key: str) -> str:
    """`ng_mean_recall@50` in words: Mean recall @50."""
    _, base, k = _parts(key)
    words = MEASURES.get(base, base.replace("_", " "))
    return f"{words} @{k}" if k else words


def _parts(key: str) -> tuple[bool, str, int]:
    base, _, k = key.removeprefix("ng_").partition("@")
    return key.startswith("ng_"), base, int(k) if k.isdigit() else 0


def object_rows(result: EvaluationResult) -> list[MeasureRow]:
    """What was measured of objects."""
    return [
        MeasureRow(answer_label(key), [percent_cell(value, result.object_intervals.get(key))])
        for key, value in _in_order(result.objects, OBJECT_MEASURES)
    ]


def answer_rows(result: EvaluationResult) -> list[MeasureRow]:
    """Rates in per cent, counts as they are."""
    return [
        MeasureRow(answer_label(key), [_answer(key, value, result.answer_intervals.get(key))])
        for key, value in _in_order(result.answers, ANSWERS)
    ]


def answer_label(key: str) -> str:
    """A key of `answers`, or one of `objects` as comparisons name it, in words."""
    if key.startswith("object_"):
        return f"Object {OBJECT_MEASURES[key.removeprefix('object_')]}"
    words = ANSWERS.get(key) or OBJECT_MEASURES.get(key) or key.replace("_", " ")
    return words[:1].upper() + words[1:]


def _answer(key: str, value: float | None, interval: tuple[float, float] | None) -> Cell:
    if key.endswith(SHARES):
        cell = percent_cell(value, interval)
        return cell if value is None else Cell(value=f"{cell.value} %", interval=cell.interval)
    if value is None:
        return Cell(value=NONE)
    low_high = f"{interval[0]:,.1f} to {interval[1]:,.1f}" if interval else ""
    return Cell(value=f"{value:,.2f}", interval=low_high)


def _in_order(
    values: Mapping[str, float | None], order: Mapping[str, str]
) -> list[tuple[str, float | None]]:
    keys = [key for key in order if key in values]
    return [(key, values[key]) for key in dict.fromkeys([*keys, *values])]


def flat_settings(settings: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Values of nested settings by name with dots; those that are not set are left out."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        elif isinstance(value, bool):
            flat[prefix + key] = "yes" if value else "no"
        elif isinstance(value, list) and value:
            flat[prefix + key] = ", ".join(map(str, value))
        elif value not in (None, "", []):
            flat[prefix + key] = str(value)
    return flat


def mapping_steps(mapping: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Steps that any kind of names went through, in their order."""
    return list(dict.fromkeys(step for shares in mapping.values() for step in shares))
