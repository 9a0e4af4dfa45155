"""Memory and speed of datasets of growing size.

    python -m benchmarks.dataset
    python -m benchmarks.dataset --rows 1000000 --side 16 --steps "other rank" digest

Makes datasets of images with 20 objects and 20 relationships each, as parquet and as JSON lines,
and reads each in a process of its own: open it (first with empty caches, then again), once more as
a rank of a trainer does that is told which rows are usable, make the digest of its annotations,
take every sample once in order, and inspect it. Prints what private memory rose by at its peak over
the step's start (RssAnon: without pages of mapped files, which the kernel takes back at will),
seconds, those of CPU time, and rows a second. Linux only.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scene_data.dataset import SceneDataset, open_dataset
from scene_data.inspection import Inspector
from scene_data.reading.sources import open_rows
from scene_data.vocabulary import load_vocabulary
from scene_data.writing import ROWS_AT_ONCE, graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.host.environment import child_environment

STEPS = ("first open", "open", "other rank", "first digest", "digest", "samples", "inspect")
"""The first two are always measured: the others take what they leave."""
NUM_OBJECTS = 20
NUM_GRAPHS = 2000
NUM_IMAGES = 50
"""Different ones; rows take turns."""
POLL_S = 0.005


def main() -> None:
    """Print a table, or measure one dataset for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--layouts", nargs="+", default=["parquet", "jsonl"])
    parser.add_argument("--side", type=int, default=96, help="pixels of the images")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    steps = [step for step in STEPS if step in (*STEPS[:2], *arguments.steps)]
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, steps)))
        return
    print(f"| layout | rows | {' | '.join(f'{step}: MiB | s | CPU | rows/s' for step in steps)} |")
    print("|---" * (2 + 4 * len(steps)) + "|")
    for layout in arguments.layouts:
        for num in arguments.rows:
            with tempfile.TemporaryDirectory() as scratch:
                file = make(Path(scratch) / "made", layout, num, arguments.side)
                cells = [
                    f"{mib:.0f} | {seconds:.2f} | {cpu:.2f} | {num / seconds:,.0f}"
                    for mib, seconds, cpu in child(file, steps)
                ]
            print(f"| {layout} | {num:,} | {' | '.join(cells)} |", flush=True)


def child(file: Path, steps: Sequence[str]) -> list[tuple[float, float, float]]:
    """Measure in a fresh process with caches of its own."""
    home = str(file.parent / "cache")
    environment = child_environment(HF_HOME=home, HF_DATASETS_CACHE=f"{home}/datasets")
    command = [sys.executable, "-m", "benchmarks.dataset", "--measure", str(file), "--steps"]
    done = subprocess.run(
        [*command, *steps], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return [tuple(found[step]) for step in steps]


def measure(file: Path, wanted: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """MiB and seconds of each step."""
    import datasets

    datasets.disable_progress_bars()
    open_dataset(make(file.parent / "warm", file.suffix[1:], 2))  # imports, pools, first mappings
    opened: list[SceneDataset] = []
    steps: dict[str, Callable[[], object]] = {
        "first open": lambda: open_dataset(file),
        "open": lambda: opened.append(open_dataset(file)),
        "other rank": lambda: open_dataset(file, usable=opened[0].check.usable),
        "first digest": lambda: opened[0].digest(),
        "digest": lambda: opened[0].digest(),
        "samples": lambda: [None for _ in opened[0]],
        "inspect": lambda: Inspector(open_rows(str(file))).run(),
    }
    return {name: risen(steps[name]) for name in wanted}


def risen(step: Callable[[], object]) -> tuple[float, float, float]:
    """Peak MiB of private memory over its start, seconds, and those of CPU time."""
    with peak() as read:
        start, cpu = time.perf_counter(), time.process_time()
        step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return read(), seconds, cpu


@contextmanager
def peak() -> Iterator[Callable[[], float]]:
    """Poll this process's private memory in a thread while the block runs."""
    over = threading.Event()
    before = private_mib()
    highest = [before]

    def poll() -> None:
        while not over.wait(POLL_S):
            highest.append(max(highest.pop(), private_mib()))

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        yield lambda: highest[0] - before
    finally:
        over.set()
        thread.join()


def private_mib() -> float:
    """Anonymous resident memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this kernel does not tell RssAnon")


def make(folder: Path, layout: str, num: int, side: int = 96) -> Path:
    """A dataset of `num` rows, written a minute ago."""
    folder.mkdir(exist_ok=True)
    file = write(folder, layout, num, side)
    os.utime(file, (time.time() - 60, time.time() - 60))
    return file


def write(folder: Path, layout: str, num: int, side: int) -> Path:
    """The rows, and the images of JSON lines beside them."""
    images = [picture(seed, side) for seed in range(NUM_IMAGES)]
    if layout == "parquet":
        file = folder / "train.parquet"
        with parquet_writer(file) as add:
            for row in rows(min(num, NUM_GRAPHS), images, side):
                add(row)
        repeat(file, num)
        return file
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)
    file = folder / "train.jsonl"
    with file.open("w") as lines:
        texts = [json.dumps({**row, "image": ""}) for row in rows(NUM_GRAPHS, images, side)]
        for number in range(num):
            image_id, image = f'"image_id": "{number}"', f'"image": "{number % NUM_IMAGES}.jpg"'
            text = texts[number % NUM_GRAPHS].partition(", ")[2].replace('"image": ""', image)
            lines.write(f"{{{image_id}, {text}\n")
    return file


def repeat(file: Path, num: int) -> None:
    """Its rows again and again, with ids of their own: a million come in seconds."""
    made = pq.read_table(file)
    with pq.ParquetWriter(file, made.schema) as again:
        for start in range(0, num, NUM_GRAPHS):
            part = made.slice(0, num - start)
            ids = pa.array([str(start + number) for number in range(len(part))])
            place = part.schema.get_field_index("image_id")
            part = part.set_column(place, part.schema.field(place), ids)
            again.write_table(part, row_group_size=ROWS_AT_ONCE)


def rows(num: int, images: list[bytes], side: int) -> Iterator[dict[str, Any]]:
    """Rows with random graphs over VG150's names; after `NUM_GRAPHS` they come again."""
    made = list(graphs(min(num, NUM_GRAPHS), side))
    for number in range(num):
        image, graph = images[number % NUM_IMAGES], made[number % NUM_GRAPHS]
        yield graph_row(str(number), image, f"{number}.jpg", (side, side), graph)


def graphs(num: int, side: int) -> Iterator[SceneGraph]:
    """Random graphs."""
    random = np.random.default_rng(0)
    words = load_vocabulary("vg150")
    for _ in range(num):
        corners = np.sort(random.integers(0, side, size=(NUM_OBJECTS, 2, 2)), axis=1)
        corners[:, 1] += 1
        names = random.choice(words.objects, NUM_OBJECTS)
        objects = tuple(
            SceneObject(id=f"{name}.{i}", bbox=tuple(box.ravel().tolist()))
            for i, (name, box) in enumerate(zip(names, corners, strict=True), start=1)
        )
        edges = tuple(
            Relationship(
                subject=objects[i].id,
                predicate=str(random.choice(words.predicates)),
                object=objects[i - 1].id,
            )
            for i in range(NUM_OBJECTS)
        )
        yield SceneGraph(objects=objects, relationships=edges)


def picture(seed: int, side: int) -> bytes:
    """Noise as JPEG, 6 kB of 96 pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
