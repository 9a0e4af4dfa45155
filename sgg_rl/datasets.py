"""Annotated pictures."""

from scene_data.dataset import SceneDataset, open_dataset
from scene_graph.cleaning import Task
from sgg_rl.arguments import AnyPath, checked


@checked
def load_dataset(
    path: AnyPath,
    *,
    thinking_column: str | None = None,
    task: Task | None = None,
    annotated: bool = True,
) -> SceneDataset:
    """Pictures with their graphs, of any layout of docs/data.md; each is read when it is asked for.

    Example:
        >>> dataset = sgg_rl.load_dataset("toy/heldout.parquet")
        >>> dataset
        <SceneDataset 'toy/heldout.parquet': 8 rows>
        >>> [item.id for item in dataset[0].graph.objects]
        ['green square.1', 'green square.2', 'yellow square.3']
        >>> [sample.image_id for sample in dataset[:2]]
        ['heldout-0-0', 'heldout-0-1']

    Args:
        path: A file, a folder, or a name of the hub.
        thinking_column: Read this text with each row.
        task: `sgg` and `cls` leave out rows without any relationship; `det` and None keep them.
        annotated: False: rows may have no graph, and pictures, a list or a folder of them, are rows
            too.

    Raises:
        InvalidInputError: Nothing has that name, its layout is unknown, or too much is broken.
    """
    return open_dataset(path, thinking_column=thinking_column, task=task, annotated=annotated)
