"""Memory and speed of datasets of growing size.

    python benchmarks/dataset.py

Makes datasets of images with 20 objects and 20 relationships each, as parquet and as JSON lines,
and reads each in a process of its own: open it (first with an empty cache of `datasets`, then
again), take every sample once in order, and inspect it. Prints what private memory rose by at its
peak over the step's start (RssAnon: without pages of mapped files, which the kernel takes back at
will), and rows a second. Linux only.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scene_data.dataset import open_dataset
from scene_data.inspection import Inspector
from scene_data.reading.sources import open_rows
from scene_data.vocabulary import load_vocabulary
from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from services.host.environment import child_environment

SIDE = 96
"""Pixels of the images: about 6 kB each as JPEG."""
NUM_OBJECTS = 20
NUM_IMAGES = 50
"""Different ones; rows take turns."""
POLL_S = 0.005


def main() -> None:
    """Print a table, or measure one dataset for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10000, 50000])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    steps = ("first open", "open", "samples", "inspect")
    print(f"| layout | rows | {' | '.join(f'{s}: MiB | rows/s' for s in steps)} |")
    print("|---" * (2 + 2 * len(steps)) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for layout in ("parquet", "jsonl"):
            for num in arguments.rows:
                file = make(Path(scratch) / f"{layout}-{num}", layout, num)
                cells = [f"{mib:.0f} | {speed:,.0f}" for mib, speed in child(file, steps)]
                print(f"| {layout} | {num:,} | {' | '.join(cells)} |", flush=True)


def child(file: Path, steps: tuple[str, ...]) -> list[tuple[float, float]]:
    """Measure in a fresh process with a cache of its own."""
    environment = child_environment(HF_DATASETS_CACHE=str(file.parent / "cache"))
    command = [sys.executable, __file__, "--measure", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return [tuple(found[step]) for step in steps]


def measure(file: Path) -> dict[str, tuple[float, float]]:
    """MiB and rows a second of each step."""
    import datasets

    datasets.disable_progress_bars()
    open_dataset(make(file.parent / "warm", file.suffix[1:], 2))  # imports, pools, first mappings
    num = len(open_rows(str(file))) if file.suffix == ".jsonl" else count_parquet(file)
    steps: dict[str, Callable[[], object]] = {
        "first open": lambda: open_dataset(file),
        "open": lambda: open_dataset(file),
    }
    found = {name: risen(step, num) for name, step in steps.items()}
    dataset = open_dataset(file)
    found["samples"] = risen(lambda: [None for _ in dataset], num)
    found["inspect"] = risen(lambda: Inspector(open_rows(str(file))).run(), num)
    return found


def count_parquet(file: Path) -> int:
    """Rows, from the footer."""
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(file).metadata.num_rows)


def risen(step: Callable[[], object], num: int) -> tuple[float, float]:
    """Peak MiB of private memory over its start, and rows a second."""
    with peak() as read:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
    return read(), num / seconds


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


def make(folder: Path, layout: str, num: int) -> Path:
    """A dataset of `num` rows."""
    folder.mkdir(exist_ok=True)
    images = [picture(seed) for seed in range(NUM_IMAGES)]
    if layout == "parquet":
        file = folder / "train.parquet"
        with parquet_writer(file) as add:
            for row in rows(num, images):
                add(row)
        return file
    for number, data in enumerate(images):
        (folder / f"{number}.jpg").write_bytes(data)
    file = folder / "train.jsonl"
    with file.open("w") as lines:
        for number, row in enumerate(rows(num, images)):
            lines.write(json.dumps({**row, "image": f"{number % NUM_IMAGES}.jpg"}) + "\n")
    return file


def rows(num: int, images: list[bytes]) -> Iterator[dict[str, Any]]:
    """Rows with random graphs over VG150's names."""
    random = np.random.default_rng(0)
    words = load_vocabulary("vg150")
    for number in range(num):
        corners = np.sort(random.integers(0, SIDE, size=(NUM_OBJECTS, 2, 2)), axis=1)
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
        graph = SceneGraph(objects=objects, relationships=edges)
        image = images[number % NUM_IMAGES]
        yield graph_row(str(number), image, f"{number}.jpg", (SIDE, SIDE), graph)


def picture(seed: int) -> bytes:
    """Noise as JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="JPEG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
