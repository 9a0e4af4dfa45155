"""A run's held-out images: scores before, now and at their best, and which images lost most."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import urlencode

from console.runs import Run
from evaluation.report.browser import browser_data
from evaluation.result import EvaluationResult, ImageResult
from evaluation.scoring.compare import Comparison, compare
from services.errors import NotFoundError, UnavailableError
from services.run_folder import TableFollower
from services.settings import load_settings

_KEPT = 3
"""Runs whose judged answers are kept"""
LABELS = ("before", "now", "after")
"""The answers that a run keeps"""
MAX_IMAGES = 100
"""In the browser: those that lost most"""
MAIN = {"sgg": "triplet_f1", "cls": "triplet_f1", "det": "object_f1"}
"""The measure that says which version is the best, by task"""
_SHOWN = {
    "triplet_f1": "Triplet F1",
    "triplet_recall": "Triplet recall",
    "triplet_precision": "Triplet precision",
    "mean_predicate_recall": "Mean predicate recall",
    "object_f1": "Object F1",
    "object_recall": "Object recall",
    "object_precision": "Object precision",
    "mean_iou": "Mean IoU",
    "failure_rate": "Answers without a graph",
}
_LESS_IS_BETTER = ("failure_rate",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """One measure, 0..1, at three versions."""

    label: str
    before: float | None
    now: float | None
    best: float | None
    interval: tuple[float, float] | None
    """95 % of `now`, where the run wrote it"""
    is_better: bool | None
    """Now than before; None where they are equal or one is missing"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What `evaluations.jsonl` says."""

    rows: list[Mapping[str, Any]]
    """One an evaluation, in order"""
    best: Mapping[str, Any] | None
    """The row with the highest main measure"""
    main: str

    @property
    def label(self) -> str:
        """The main measure in words."""
        return _SHOWN[self.main]

    @property
    def table(self) -> list[ScoreRow]:
        """The measures that the run has."""
        first, last = self.rows[0], self.rows[-1]
        found = []
        for key, label in _SHOWN.items():
            before, now = _number(first, key), _number(last, key)
            if now is None:
                continue
            better = None
            if before is not None and now != before:
                better = (now > before) != (key in _LESS_IS_BETTER)
            found.append(
                ScoreRow(
                    label=label,
                    before=before,
                    now=now,
                    best=_number(self.best or {}, key),
                    interval=_interval(last, key),
                    is_better=better,
                )
            )
        return found

    @property
    def points(self) -> list[tuple[int, float, float, float]]:
        """Version, and the main measure with its interval's ends; the value itself without one."""
        found = []
        for row in self.rows:
            value, step = _number(row, self.main), _step(row)
            if value is not None and step is not None:
                low, high = _interval(row, self.main) or (value, value)
                found.append((step, value, low, high))
        return found


def read_scores(run: Run, task: str) -> Scores | None:
    """The scores of a run; None before the first evaluation."""
    rows = [
        row
        for row in TableFollower[Mapping[str, Any]](run.files.evaluations).read().rows
        if _step(row) is not None
    ]
    if not rows:
        return None
    main = MAIN.get(task, "triplet_f1")
    scored = [row for row in rows if _number(row, main) is not None]
    best = max(scored, key=lambda row: _number(row, main) or 0.0, default=None)
    return Scores(rows=rows, best=best, main=main)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The kept answers about held-out images, judged."""

    result: EvaluationResult
    """Numbers of the last answers that there are"""
    compared: Comparison | None
    """With those from before training, where both are there"""
    image_bytes: Callable[[str], bytes | None]


class AnswersReader:
    """Judges the kept answers of runs, each anew when their files change.

    That takes seconds, so that it goes on in a thread, one run at a time.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._pool = ThreadPoolExecutor(1, "heldout")
        self._jobs: OrderedDict[Path, tuple[tuple[int, ...], Future[Answered]]] = OrderedDict()
        self._lock = Lock()

    def of(self, run: Run) -> "Future[Answered] | None":
        """The run's kept answers, or what will be; None where it has none.

        The future raises SggError or OSError where settings, dataset or answers cannot be read.
        """
        files = [run.files.config, *(run.files.heldout(label) for label in LABELS)]
        stamps = tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)
        if not any(stamps[1:]):
            return None
        with self._lock:
            known = self._jobs.get(run.path)
            if known is None or known[0] != stamps:
                known = stamps, self._pool.submit(_judged, run)
                self._jobs[run.path] = known
            self._jobs.move_to_end(run.path)
            if len(self._jobs) > _KEPT:
                self._jobs.popitem(last=False)
            return known[1]


ANSWERS = AnswersReader()


def compare_runs(first: Run, second: Run) -> Comparison:
    """What the last answers of `second` have more, on the images that both runs were asked about.

    Raises:
        NotFoundError: A run keeps no answers of a version that it trained.
        SggError: Their images are not the same, or answers or dataset cannot be read.
        OSError: The same.
    """
    return compare(_last_result(first), _last_result(second))


def _last_result(run: Run) -> EvaluationResult:
    files = [run.files.heldout(label) for label in LABELS[1:]]
    job = ANSWERS.of(run)
    if job is None or not any(file.is_file() for file in files):
        names = " nor ".join(file.name for file in files)
        raise NotFoundError(
            f"{run.name} has no answers about held-out images since it trains: there is neither "
            f"{names}"
        )
    return job.result().result


def _judged(run: Run) -> Answered:
    try:
        return _answered(run)
    except ImportError as error:
        raise UnavailableError(
            f"{error.name} is not installed where the console runs: pip install 'sgg-rl[evaluate]'"
        ) from error


def _answered(run: Run) -> Answered:
    from evaluation.of_a_run.kept_answers import kept_results

    there = {"root": run.path.parent, "name": run.path.name}
    settings = load_settings(run.files.config, environment={})
    seen = run.files.seen_from
    data = {"train": seen(settings.data.train)}
    if settings.data.heldout:
        data["heldout"] = seen(settings.data.heldout)
    settings = settings.changed(run=there, data=data)
    before, last = kept_results(settings)
    found = last or before
    if found is None:
        raise NotFoundError("the answers have just been removed")
    result, image_bytes = found
    compared = compare(before[0], result) if before and last else None
    return Answered(result=result, compared=compared, image_bytes=image_bytes)


def images_data(run: Run, answered: Answered) -> tuple[dict[str, Any], str]:
    """What the report's browser draws, and a sentence that says which images those are.

    The images that lost most F1 come first; without answers from before, those with the least.
    """
    evaluations = [answered.result]
    if answered.compared:
        evaluations = [answered.compared.first, answered.compared.second]
    sides = [(each.name, {image.image_id: image for image in each.images}) for each in evaluations]
    shared = [
        image
        for image in answered.result.images
        if all(image.image_id in by_id for _, by_id in sides)
    ]
    gained = _gain(sides[0][1]) if answered.compared else lambda image: image.f1 or 0.0
    chosen = sorted(shared, key=gained)[:MAX_IMAGES]
    order = "loss" if answered.compared else "f1-up"
    data = browser_data(
        chosen,
        sides,
        lambda image_id, _: f"{run.url}/heldout/picture?{urlencode({'image': image_id})}",
        answered.result.task,
        order,
    )
    lost = sum(gained(image) < 0 for image in shared) if answered.compared else None
    return data, _which(lost, len(chosen), len(shared))


def _which(lost: int | None, num_shown: int, num_images: int) -> str:
    """What is said of the images: `lost` have less F1 than before; None without a before."""
    if lost is None:
        said, how = "", "have the least F1"
    elif lost:
        said, how = f"{lost:,} of {num_images:,} images lost F1", "lost most"
    else:
        said, how = "No image lost F1", "gained least"
    said = f"{said} since the start of training. " if said else ""
    part = f"; here are {num_shown:,} of {num_images:,}" if num_shown < num_images else ""
    return f"{said}Those that {how} come first{part}."


def _gain(before: Mapping[str, ImageResult]) -> Callable[[ImageResult], float]:
    return lambda image: (image.f1 or 0.0) - (before[image.image_id].f1 or 0.0)


def _step(row: Mapping[str, Any]) -> int | None:
    step = row.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return None if isinstance(value, bool) or not isinstance(value, int | float) else float(value)


def _interval(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    found = row.get("intervals")
    ends = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(e, int | float) for e in ends):
        return float(ends[0]), float(ends[1])
    return None
