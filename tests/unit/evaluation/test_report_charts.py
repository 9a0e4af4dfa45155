from xml.etree import ElementTree

import pytest

from evaluation.report.changes import MAX_CHANGES, change_chart
from evaluation.report.charts import (
    MAX_PREDICATES,
    count_chart,
    length_chart,
    predicate_chart,
    reason_bars,
)
from evaluation.report.svg import Scale, round_step
from evaluation.result import PredicateRow
from evaluation.scoring.compare import PredicateChange
from scene_graph.drawing.svg import element


def rects(chart: str, kind: str) -> list[ElementTree.Element]:
    return [r for r in ElementTree.fromstring(chart).iter("rect") if r.get("class") == kind]


def row(name: str, recall: float, group: str = "head") -> PredicateRow:
    return PredicateRow(
        predicate=name,
        group=group,  # type: ignore[arg-type]
        num_training=None,
        num_reference=1,
        num_predicted=1,
        recall={"strict": recall, "sgb": 1.0},
    )


def test_elements_are_escaped() -> None:
    assert element("text", "<b>", class_='"&') == '<text class="&#34;&amp;">&lt;b&gt;</text>'


@pytest.mark.parametrize(
    ("rough", "step"), [(1, 1), (1.1, 2), (3, 5), (7, 10), (0.03, 0.05), (160, 200)]
)
def test_steps_are_round(rough: float, step: float) -> None:
    assert round_step(rough) == pytest.approx(step)


def test_scale_and_its_ticks() -> None:
    scale = Scale(low=0, high=100, start=300, end=100)
    assert scale(25) == 250
    assert scale.ticks == [0, 20, 40, 60, 80, 100]
    assert Scale(low=0, high=0.3, start=0, end=1).ticks == pytest.approx([0, 0.1, 0.2, 0.3])


def test_bars_are_as_high_as_the_recall() -> None:
    chart = predicate_chart([row("on", 1.0), row("by", 0.25, "tail")], {"head": {"strict": 1.0}})
    full, quarter = rects(chart, "bar head"), rects(chart, "bar tail")
    assert float(quarter[0].get("height", 0)) == pytest.approx(
        float(full[0].get("height", 0)) / 4, abs=0.1
    )
    assert "head: mean 100.0" in chart


def test_open_vocabulary_is_cut() -> None:
    chart = predicate_chart([row(f"p{i}", 0.5) for i in range(500)], {})
    assert len(rects(chart, "bar head")) == MAX_PREDICATES


def test_cells_hold_every_image() -> None:
    pairs = [(0, 0), (3, 3), (3, 3), (2000, 1), (7, 250)]
    titles = [
        t.text or "" for t in ElementTree.fromstring(count_chart(pairs, "objects")).iter("title")
    ]
    assert sum(int(t.split()[0]) for t in titles) == len(pairs)
    assert len(ElementTree.fromstring(count_chart([(0, 0)], "objects")).findall("rect")) == 1


def test_lengths_stand_on_each_other() -> None:
    chart = length_chart([5, 5, 900], [5, 1024])
    titles = [t.text or "" for t in ElementTree.fromstring(chart).iter("title")]
    assert sum(int(t.split()[0]) for t in titles if "with a graph" in t) == 3
    assert sum(int(t.split()[0]) for t in titles if "without a graph" in t) == 2
    good, bad = rects(chart, "bar head")[0], rects(chart, "bar failed")[0]
    top, foot = float(good.get("y", 0)), float(bad.get("y", 0)) + float(bad.get("height", 0))
    assert top == pytest.approx(foot, abs=0.2)
    length_chart([], [0])


def test_reasons_are_longest_first() -> None:
    chart = reason_bars({"no_answer": 1, "invalid_json": 3}, 10)
    assert chart.index("invalid json") < chart.index("no answer")
    assert "3 (30.00 %)" in chart


def test_changes_are_those_that_moved_most_hits() -> None:
    def change(name: str, num: int, second: float) -> PredicateChange:
        return PredicateChange(predicate=name, num_reference=num, first=0.5, second=second)

    rare = [change(f"rare{i}", 1, 1.0) for i in range(MAX_CHANGES)]
    chart = change_chart([change("on", 900, 0.4), *rare, change("same", 50, 0.5)])
    assert len(rects(chart, "bar failed")) == 1
    assert len(rects(chart, "bar gained")) == MAX_CHANGES - 1
    assert ">on<" in chart
    assert "same" not in chart
    assert change_chart([change("same", 5, 0.5)]) == ""


@pytest.mark.parametrize("seconds", [[0.9, 0.6], [0.1, 0.4], [0.9, 0.1, 0.51]])
def test_bars_of_changes_fill_the_chart_and_stay_in_it(seconds: list[float]) -> None:
    changes = [
        PredicateChange(predicate=f"on{i}", num_reference=9, first=0.5, second=second)
        for i, second in enumerate(seconds)
    ]
    chart = change_chart(changes)
    (line,) = ElementTree.fromstring(chart).iter("line")
    zero, ends = float(line.get("x1", "")), []
    for kind in ("gained", "failed"):
        for bar in rects(chart, f"bar {kind}"):
            x, width = float(bar.get("x", "")), float(bar.get("width", ""))
            assert (x if kind == "gained" else x + width) == pytest.approx(zero, abs=0.2)
            ends += [x, x + width]
    assert len(ends) == 2 * len(seconds)
    first = 128 if min(seconds) > 0.5 else 176  # without losses there is no room for them
    assert [min(ends), max(ends)] == pytest.approx([first, 352], abs=0.2)
