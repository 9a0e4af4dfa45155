"""Loads terms of files for a test, and forgets them."""

import sys
import tomllib
from pathlib import Path
from typing import Any

from reward_service import own_terms, terms

ROOT = Path(__file__).parents[3]
EXAMPLES = {"sgg-r3": "sgg_r3.toml", "scene-graph-vlm": "scene_graph_vlm.toml"}
"""Rubrics of `examples/rewards`, with their files"""


def example_rubric(name: str) -> tuple[list[str], dict[str, Any]]:
    """The places of its terms, whatever the current folder, and the rubric."""
    file = ROOT / "examples" / "rewards" / EXAMPLES[name]
    reward = tomllib.loads(file.read_text(encoding="utf-8"))["reward"]
    return [str(ROOT / place) for place in reward["terms"]], reward["rubric"]


def forget(before: dict[str, terms.Term], *modules: str) -> None:
    """List the terms of before again, and import files anew."""
    terms._TERMS.clear()
    terms._TERMS.update(before)
    own_terms._list.cache_clear()
    own_terms._module_of_file.cache_clear()
    for name in modules:
        sys.modules.pop(name, None)
