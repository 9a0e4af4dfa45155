"""How long all metrics of an evaluation take as images grow, and against plain loops.

python benchmarks/evaluation.py

Every image has 20 objects and 20 relations on both sides, VG150's numbers of names with a long
tail; a prediction is its reference with boxes moved and a part of the names changed. Reading is not
in it. One process on the cores that it may use; the metrics use one of them.
"""

import os
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

# In this file's folder `evaluation` would be this file.
sys.path[0] = str(Path(__file__).parents[1])

from evaluation.scoring.detection import detection_ap  # noqa: E402
from scene_graph.metrics.bootstrap import resampled  # noqa: E402
from scene_graph.metrics.r1_sgg import r1_sgg  # noqa: E402
from scene_graph.metrics.ratio import RatioMetric  # noqa: E402
from scene_graph.metrics.sgb import sgb  # noqa: E402
from scene_graph.metrics.strict import strict  # noqa: E402
from scene_graph.metrics.table import ImageGraph, tabulate  # noqa: E402
from tests import metrics_oracle as loops  # noqa: E402

SIZES = (2_500, 5_000, 10_000)
LOOP_IMAGES = 300
"""Enough for the loops to take a second."""
ROUNDS = 5
"""Rounds of our code against the loops; the median ratio is printed."""
NUM_ITEMS = 20
NAMES = [f"name {i}" for i in range(150)]
PREDICATES = [f"predicate {i}" for i in range(50)]
WIDTH, HEIGHT = 640.0, 480.0
PARTS = ("tabulate", "strict", "sgb", "r1-sgg", "AP", "bootstrap")
NUM_COLUMNS = 150
"""Columns of R1-SGG's dense table, the larger of the two in use."""

T = TypeVar("T")
Images = tuple[list[ImageGraph], list[ImageGraph]]


def main() -> None:
    """Print both tables."""
    images = make_images(max(SIZES))
    print(f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores\n")
    print("seconds for images of 20 objects and 20 relations on both sides")
    print(f"{'images':>8}", *(f"{name:>10}" for name in PARTS), f"{'total':>8}", "  peak RSS, MiB")
    for size in SIZES:
        seconds = time_parts((images[0][:size], images[1][:size]))
        row = "".join(f"{s:>10.2f} " for s in seconds)
        print(f"{size:>8} {row}{sum(seconds):>8.2f} {peak_mib():>14.0f}", flush=True)
    print(f"\nagainst plain loops on {LOOP_IMAGES} images, medians of {ROUNDS} rounds")
    for name, (ours, plain, ratio) in against_loops(images).items():
        print(f"{name:>8}: {ours:.3f} s, loops {plain:.3f} s: {ratio:.0f} times as fast")


def time_parts(images: Images) -> list[float]:
    """Seconds of each of `PARTS`."""
    seconds: list[float] = []

    def timed(call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - begin)
        return result

    seen = seen_triplets(images[1])
    tables = timed(lambda: tabulate(*images))
    metrics = dict(timed(lambda: strict(*tables, seen=seen)).metrics)
    of_sgb = timed(lambda: sgb(*tables, predicates=PREDICATES, num_columns=NUM_COLUMNS, seen=seen))
    of_loops = timed(lambda: r1_sgg(*tables))
    timed(lambda: detection_ap(*tables))
    metrics |= {f"sgb {name}": metric for name, metric in of_sgb.items()}
    metrics |= {f"r1-sgg {name}": metric for name, metric in of_loops.items()}
    timed(lambda: resampled(metrics, len(images[0])))
    return seconds


def against_loops(images: Images) -> dict[str, tuple[float, float, float]]:
    """Median seconds of ours, of the loops, and median ratio, by protocol; both must agree."""
    few = images[0][:LOOP_IMAGES], images[1][:LOOP_IMAGES]
    every = {names for graph in few[1] for names, _, _ in loops.relations(graph)}
    seen = seen_triplets(images[1])
    zero_shot = every - seen
    ways: dict[str, tuple[Callable[[], dict[str, float]], Callable[[], dict[str, float]]]] = {
        "sgb": (
            lambda: _values(
                sgb(*tabulate(*few), predicates=PREDICATES, num_columns=NUM_COLUMNS, seen=seen)
            ),
            lambda: loops.sgb(*few, PREDICATES, NUM_COLUMNS, zero_shot),
        ),
        "r1-sgg": (lambda: _values(r1_sgg(*tabulate(*few))), lambda: loops.r1_sgg(*few)),
    }
    found = {}
    for name, (ours, plain) in ways.items():
        rounds = [(*_timed(ours), *_timed(plain)) for _ in range(ROUNDS)]
        for _, values, _, expected in rounds:
            assert max(abs(values[key] - expected[key]) for key in expected) < 1e-9
        found[name] = (
            statistics.median(r[0] for r in rounds),
            statistics.median(r[2] for r in rounds),
            statistics.median(r[2] / r[0] for r in rounds),
        )
    return found


def _timed(call: Callable[[], dict[str, float]]) -> tuple[float, dict[str, float]]:
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def _values(metrics: dict[str, RatioMetric]) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


def make_images(num_images: int) -> Images:
    """Predictions and references."""
    rng = random.Random(0)
    references = [_reference(rng) for _ in range(num_images)]
    return [_prediction(graph, rng) for graph in references], references


def _reference(rng: random.Random) -> ImageGraph:
    boxes: list[float] = []
    for _ in range(NUM_ITEMS):
        x, y = rng.uniform(0, WIDTH - 40), rng.uniform(0, HEIGHT - 40)
        boxes += [x, y, rng.uniform(x + 20, WIDTH), rng.uniform(y + 20, HEIGHT)]
    pairs = [rng.sample(range(NUM_ITEMS), 2) for _ in range(NUM_ITEMS)]
    return ImageGraph(
        names=[_one_of(NAMES, rng) for _ in range(NUM_ITEMS)],
        boxes=boxes,
        subjects=[s for s, _ in pairs],
        predicates=[_one_of(PREDICATES, rng) for _ in pairs],
        objects=[o for _, o in pairs],
        size=(WIDTH, HEIGHT),
    )


def _prediction(graph: ImageGraph, rng: random.Random) -> ImageGraph:
    return replace(
        graph,
        names=[name if rng.random() < 0.8 else _one_of(NAMES, rng) for name in graph.names],
        boxes=[c + rng.gauss(0, 8) for c in graph.boxes],
        predicates=[
            name if rng.random() < 0.6 else _one_of(PREDICATES, rng) for name in graph.predicates
        ],
    )


def _one_of(names: Sequence[str], rng: random.Random) -> str:
    """The i-th with a probability of about 1 / i."""
    return names[int(len(names) ** rng.random()) - 1]


def seen_triplets(references: Sequence[ImageGraph]) -> set[tuple[str, str, str]]:
    """Triplets of every other image, in place of a training split."""
    return {names for graph in references[::2] for names, _, _ in loops.relations(graph)}


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_name() -> str:
    """The processor, as the kernel names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((s.partition(":")[2].strip() for s in lines if s.startswith("model name")), "CPU")


if __name__ == "__main__":
    main()
