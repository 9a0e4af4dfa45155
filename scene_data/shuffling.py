"""The same graph in another order: SFT must not teach that order means something."""

import numpy as np

from scene_graph.graph import SceneGraph


def shuffled_graph(graph: SceneGraph, *, seed: int, epoch: int, row: int) -> SceneGraph:
    """A graph with its objects and relationships permuted.

    Objects keep their ids, so every relationship still means the same pair.

    Args:
        graph: As annotated.
        seed: The run's.
        epoch: Another epoch, another order.
        row: Its number in the dataset; rows of one epoch are permuted independently.

    Returns:
        A pure function of the arguments: a resumed run sees what an uninterrupted one does.
    """
    random = np.random.default_rng([seed, epoch, row])
    objects = random.permutation(len(graph.objects))
    relationships = random.permutation(len(graph.relationships))
    return SceneGraph(
        objects=tuple(graph.objects[i] for i in objects),
        relationships=tuple(graph.relationships[i] for i in relationships),
    )
