"""Scene graphs from Python: data, scores, drawings, answers of a model, and runs.

Example: `sgg_rl.load_dataset("data/val.parquet")[0]` is a picture in a notebook.

`docs/python.md` has an example of each name. Importing this is quick: what a name needs is imported
when the name is first used.
"""

import warnings
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sgg_rl.notebook import show_graphs

if TYPE_CHECKING:
    from scene_data.dataset import Sample
    from scene_graph.graph import Relationship, SceneGraph, SceneObject
    from sgg_rl.clients import AsyncClient, Client
    from sgg_rl.datasets import load_dataset
    from sgg_rl.evaluating import compare, evaluate
    from sgg_rl.pictures import draw
    from sgg_rl.predicting import predict
    from sgg_rl.runs import connect
    from sgg_rl.scoring import read_answer, score

__all__ = [
    "AsyncClient",
    "Client",
    "Relationship",
    "Sample",
    "SceneGraph",
    "SceneObject",
    "compare",
    "connect",
    "draw",
    "evaluate",
    "load_dataset",
    "predict",
    "read_answer",
    "score",
]

_PLACES = {
    "AsyncClient": "sgg_rl.clients:AsyncClient",
    "Client": "sgg_rl.clients:Client",
    "Relationship": "scene_graph.graph:Relationship",
    "Sample": "scene_data.dataset:Sample",
    "SceneGraph": "scene_graph.graph:SceneGraph",
    "SceneObject": "scene_graph.graph:SceneObject",
    "compare": "sgg_rl.evaluating:compare",
    "connect": "sgg_rl.runs:connect",
    "draw": "sgg_rl.pictures:draw",
    "evaluate": "sgg_rl.evaluating:evaluate",
    "load_dataset": "sgg_rl.datasets:load_dataset",
    "predict": "sgg_rl.predicting:predict",
    "read_answer": "sgg_rl.scoring:read_answer",
    "score": "sgg_rl.scoring:score",
}

# tqdm's, in a notebook without widgets: none of our bars is one.
warnings.filterwarnings("ignore", message="IProgress not found")
show_graphs()


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"sgg_rl has no {name!r}; it has {', '.join(_PLACES)}")
    value = globals()[name] = resolve_name(_PLACES[name])
    return value


def __dir__() -> list[str]:
    return __all__
