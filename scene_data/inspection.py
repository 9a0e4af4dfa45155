"""What is in a dataset, and what is wrong with it: `sgg-rl data inspect`."""

from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scene_data.dataset import NUM_LISTED, RowCheck
from scene_data.reading.images import check_image, image_bytes
from scene_data.reading.rows import RowError, image_id_text, read_graph, read_size
from scene_data.reading.sources import Row, Rows
from scene_data.vocabulary import Vocabulary
from scene_graph.graph import SceneGraph, normalise_name

NUM_TOP = 20
RARE = 10
"""Names with fewer instances are counted as rare"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution; all 0 where there is nothing."""

    mean: float
    min: float
    p5: float
    median: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NameStatistics:
    """Object names, or predicates."""

    num_names: int
    num_instances: int
    top: list[tuple[str, int]]
    """The `NUM_TOP` most frequent, with their numbers"""
    num_for_half: int
    """The most frequent names that half of all instances have"""
    num_for_90_percent: int
    num_rare: int
    """Names with fewer than `RARE` instances"""
    num_outside: int | None = None
    """Instances whose name is not in the vocabulary; None without one"""
    top_outside: list[tuple[str, int]] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    """Names of the vocabulary without an instance"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A dataset's counts."""

    num_rows: int
    num_usable: int
    """Neither broken nor without an image"""
    num_broken: int
    broken_by_reason: dict[str, int]
    broken: list[str]
    """The first `NUM_LISTED`"""
    dropped: dict[str, int]
    """Parts of annotations, by reason"""
    num_without_image: int
    """JSON rows that name no image; training leaves them out"""
    num_without_relationship: int
    """Training on `sgg` and `cls` leaves them out"""
    num_repeated_ids: int
    """Rows with the image id of an earlier one"""
    repeated_ids: list[str]
    """The first `NUM_LISTED`"""
    images_checked: bool
    """Whether every image was decoded"""
    num_turned: int
    """Images with an EXIF orientation, of those that were opened"""
    num_sized: int
    """Images of known size"""
    width: Spread
    height: Spread
    objects_per_image: Spread
    relationships_per_image: Spread
    box_area: Spread
    """Share of the image"""
    box_aspect: Spread
    """Width by height"""
    num_boxes_outside: int
    """Boxes that reach over the image's edge"""
    objects: NameStatistics
    predicates: NameStatistics


class Inspector:
    """Reads a source once.

    Args:
        rows: The source.
        vocabulary: To say what is outside it.
        check_images: Decode every image.
    """

    def __init__(
        self, rows: Rows, *, vocabulary: Vocabulary | None = None, check_images: bool = False
    ) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._check_images = check_images
        self.check = RowCheck(usable=np.ones(len(rows), dtype=bool))
        self._num_without_image = 0
        self._ids: set[str] = set()
        self._repeated: list[str] = []
        self._num_repeated = 0
        self._objects: Counter[str] = Counter()
        self._predicates: Counter[str] = Counter()
        self._sizes = array("l")
        self._per_image = array("l")
        self._boxes = array("f")
        self._num_outside = 0
        self._num_turned = 0

    def run(self, on_row: Callable[[], object] = lambda: None) -> Inspection:
        """Read all rows.

        Args:
            on_row: Called after each.
        """
        for index, row in enumerate(self._rows.annotations()):
            try:
                self._add(index, row)
            except RowError as error:
                self.check.note_row(index, self._rows.place(index), row, error)
            on_row()
        return self._result()

    def _add(self, index: int, row: Row | RowError) -> None:
        if isinstance(row, RowError):
            raise row
        graph, dropped = read_graph(row)
        size = self._size(index, row)
        self.check.dropped.update(dropped)
        self.check.num_unrelated += not graph.relationships
        self._note_id(image_id_text(row["image_id"]))
        self._objects.update(item.category for item in graph.objects)
        self._predicates.update(item.predicate for item in graph.relationships)
        self._per_image.extend((len(graph.objects), len(graph.relationships)))
        if size is not None:
            self._sizes.extend(size)
            self._add_boxes(graph, size)

    def _size(self, index: int, row: Row) -> tuple[int, int] | None:
        """The image's size; None where neither row nor image say it."""
        said = read_size(row)
        if "image" in row and not row["image"]:
            self._num_without_image += 1
            self.check.usable[index] = False
        elif self._check_images or said is None:
            data = image_bytes(self._rows.row(index)["image"])
            header = check_image(data, said, all_pixels=self._check_images)
            self._num_turned += header.orientation > 1
            return header.size
        return said

    def _note_id(self, image_id: str) -> None:
        if image_id not in self._ids:
            self._ids.add(image_id)
            return
        self._num_repeated += 1
        if len(self._repeated) < NUM_LISTED:
            self._repeated.append(image_id)

    def _add_boxes(self, graph: SceneGraph, size: tuple[int, int]) -> None:
        width, height = size
        for item in graph.objects:
            x1, y1, x2, y2 = item.bbox
            self._boxes.extend(((x2 - x1) * (y2 - y1) / (width * height), (x2 - x1) / (y2 - y1)))
            self._num_outside += x1 < 0 or y1 < 0 or x2 > width or y2 > height

    def _result(self) -> Inspection:
        check, sizes = self.check, _pairs(self._sizes)
        per_image, boxes = _pairs(self._per_image), _pairs(self._boxes)
        words = self._vocabulary
        return Inspection(
            num_rows=len(self._rows),
            num_usable=int(np.count_nonzero(check.usable)),
            num_broken=check.num_broken,
            broken_by_reason=dict(check.reasons.most_common()),
            broken=check.broken,
            dropped=dict(check.dropped.most_common()),
            num_without_image=self._num_without_image,
            num_without_relationship=check.num_unrelated,
            num_repeated_ids=self._num_repeated,
            repeated_ids=self._repeated,
            images_checked=self._check_images,
            num_turned=self._num_turned,
            num_sized=len(sizes),
            width=_spread(sizes[:, 0]),
            height=_spread(sizes[:, 1]),
            objects_per_image=_spread(per_image[:, 0]),
            relationships_per_image=_spread(per_image[:, 1]),
            box_area=_spread(boxes[:, 0]),
            box_aspect=_spread(boxes[:, 1]),
            num_boxes_outside=self._num_outside,
            objects=_names(self._objects, words.objects if words else None),
            predicates=_names(self._predicates, words.predicates if words else None),
        )


def _pairs(values: "array[int] | array[float]") -> NDArray[Any]:
    """[N, 2], not copied: there are a million boxes in a large dataset."""
    return np.asarray(values).reshape(-1, 2)


def _spread(values: NDArray[Any]) -> Spread:
    if not len(values):
        return Spread(mean=0, min=0, p5=0, median=0, p95=0, max=0)
    low, p5, median, p95, high = np.quantile(values, [0, 0.05, 0.5, 0.95, 1]).tolist()
    return Spread(
        mean=float(values.mean(dtype=np.float64)), min=low, p5=p5, median=median, p95=p95, max=high
    )


def _names(counts: Mapping[str, int], vocabulary: tuple[str, ...] | None) -> NameStatistics:
    ranked = Counter(counts).most_common()
    reached = np.cumsum([number for _, number in ranked])
    total = int(reached[-1]) if ranked else 0
    known = None if vocabulary is None else {normalise_name(name) for name in vocabulary}
    outside = [] if known is None else [x for x in ranked if normalise_name(x[0]) not in known]
    used = {normalise_name(name) for name in counts}
    return NameStatistics(
        num_names=len(ranked),
        num_instances=total,
        top=ranked[:NUM_TOP],
        num_for_half=int(np.searchsorted(reached, 0.5 * total)) + 1 if ranked else 0,
        num_for_90_percent=int(np.searchsorted(reached, 0.9 * total)) + 1 if ranked else 0,
        num_rare=sum(number < RARE for _, number in ranked),
        num_outside=None if known is None else sum(number for _, number in outside),
        top_outside=outside[:NUM_TOP],
        unused=[name for name in vocabulary or () if normalise_name(name) not in used],
    )
