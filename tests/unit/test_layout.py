"""Rules of the layout that import-linter cannot say: one file each for the heavy engines."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "scene_graph",
    "services",
    "scene_data",
    "rollout_service",
    "reward_service",
    "trainer",
    "evaluation",
    "launcher",
    "cli",
]


def importers(module: str) -> set[str]:
    """Files with a static import of `module`, at any depth."""
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module]
                if any(name.split(".")[0] == module for name in names):
                    found.add(str(file.relative_to(ROOT)))
    return found


@pytest.mark.parametrize(
    ("module", "file"),
    [("vllm", "rollout_service/vllm_engine.py"), ("deepspeed", "trainer/engine.py")],
)
def test_heavy_engine_is_imported_in_one_file(module: str, file: str) -> None:
    assert importers(module) == {file}
