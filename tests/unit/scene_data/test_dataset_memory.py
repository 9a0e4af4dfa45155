"""What a dataset keeps in memory does not grow with its rows.

It is measured in a process of its own: tracemalloc counts what any thread allocates.
"""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from scene_data.dataset import open_dataset
from scene_data.writing import graph_row, parquet_writer
from scene_graph.graph import Relationship, SceneGraph, SceneObject
from tests.processes import ROOT
from tests.raw_annotations import picture

GRAPH = SceneGraph(
    objects=tuple(SceneObject(id=f"man.{i}", bbox=(1, 2, 30, 40)) for i in range(10)),
    relationships=tuple(
        Relationship(subject=f"man.{i}", predicate="near", object="man.0") for i in range(1, 10)
    ),
)


def _dataset(folder: Path, layout: str, num: int) -> Path:
    image = picture()
    rows = (graph_row(str(i), image, f"{i}.jpg", (64, 48), GRAPH) for i in range(num))
    path = folder / f"{num}.{layout}"
    if layout == "parquet":
        with parquet_writer(path) as add:
            for row in rows:
                add(row)
    else:
        lines = [json.dumps({**row, "image": "a.jpg"}) for row in rows]
        text = f"[{','.join(lines)}]" if layout == "json" else "\n".join(lines)
        path.write_text(text)
    return path


def _opened(path: Path) -> tuple[int, int, int]:
    """Rows of a dataset, the bytes that it keeps, and how many opening held at once."""
    tracemalloc.start()
    dataset = open_dataset(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return len(dataset), kept, peak


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "json"])
def test_ten_times_the_rows_do_not_need_more_memory(tmp_path: Path, layout: str) -> None:
    few, many = (_dataset(tmp_path, layout, num) for num in (150, 1500))
    alone = [sys.executable, "-m", "tests.unit.scene_data.test_dataset_memory"]
    done = subprocess.run(
        [*alone, few, many], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (_, kept_few, peak_few), (num, kept_many, peak_many) = json.loads(done.stdout.splitlines()[-1])
    assert num == 1500
    # A row may cost the three numbers of its place in a file: 24 bytes, and some slack.
    assert kept_many - kept_few < 1350 * 64
    # A batch of 1,000 rows of annotations, or a window of a JSON list, is all that is held.
    assert peak_many < peak_few + 4_000_000
    assert peak_many < many.stat().st_size * 4 + 4_000_000


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]]
    for file in files:
        open_dataset(file)  # what is imported, and cached on disk, at the first use
    sys.stdout.write(json.dumps([_opened(file) for file in files]))
