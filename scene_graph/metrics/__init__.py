"""How good predicted scene graphs are, by three protocols. Pure functions: `docs/evaluation.md`."""

from scene_graph.metrics.heldout_metrics import SceneGraphMetrics, strict_metrics

__all__ = ["SceneGraphMetrics", "strict_metrics"]
