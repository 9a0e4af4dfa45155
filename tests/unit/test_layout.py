"""Rules of the layout that import-linter cannot say: one file each for the heavy engines."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "scene_graph",
    "services",
    "scene_data",
    "weight_sync",
    "rollout_service",
    "reward_service",
    "monitor_service",
    "trainer",
    "evaluation",
    "planning",
    "launcher",
    "deploy",
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


def test_deepspeed_is_imported_in_one_file() -> None:
    assert importers("deepspeed") == {"trainer/policy/deepspeed_api.py"}


def test_vllm_is_imported_by_its_adapters_alone() -> None:
    allowed = ("rollout_service/vllm/*.py", "weight_sync/nccl.py")
    strangers = {f for f in importers("vllm") if not any(Path(f).match(a) for a in allowed)}
    assert not strangers
