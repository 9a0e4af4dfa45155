"""Each import contract finds what it is for: a forbidden import, planted in a copy of the tree."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from services.host.environment import child_environment

ROOT = Path(__file__).parents[2]
PLANTED = [
    ("rollout_service/http/app.py", "import vllm", "vllm is imported by its adapters alone"),
    (
        "evaluation/result.py",
        "import rollout_service.vllm.engine",
        "The engines are loaded by their services alone",
    ),
    (
        "trainer/train.py",
        "import deepspeed",
        "deepspeed is imported by one file",
    ),
    (
        "trainer/algorithms/losses.py",
        "import trainer.collection",
        "The trainer's rooms have an order, and its formulas import nothing else of it",
    ),
    ("services/errors.py", "import torch", "Wire, domain and rewards stay light"),
    (
        "services/waiting.py",
        "import scene_data.sampler",
        "Data flows one way: each layer imports only the ones below it",
    ),
    (
        "planning/preflight/bare.py",
        "import transformers",
        "What every process checks at its start costs no seconds",
    ),
    ("monitor_service/dead.py", "import scene_data.sampler", "The monitor needs services only"),
    (
        "scene_graph/boxes.py",
        "import scene_graph.matching",
        "No folder and no file is part of an import circle",
    ),
]
"""A file, what it gets to import, and the contract that this breaks."""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages that the contracts are about, and the contracts."""
    folder = tmp_path_factory.mktemp("contracts")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in contracts()["root_packages"]:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def contracts() -> dict[str, Any]:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    return dict(tools["importlinter"])


def verdicts(folder: Path) -> dict[str, str]:
    """KEPT or BROKEN for each contract's name."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--cache-dir", folder / "cache"],
        cwd=folder,
        env=child_environment(PYTHONPATH="", COLUMNS="200", NO_COLOR="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    return dict(re.findall(r"^(.+) (KEPT|BROKEN)\b", done.stdout, re.MULTILINE))


def test_the_tree_keeps_each_contract(copied: Path) -> None:
    names = [str(contract["name"]) for contract in contracts()["contracts"]]
    assert verdicts(copied) == dict.fromkeys(names, "KEPT")
    assert {name for _, _, name in PLANTED} == set(names), "each has a forbidden import here"


@pytest.mark.parametrize(("file", "line", "broken"), PLANTED, ids=[name for *_, name in PLANTED])
def test_a_forbidden_import_breaks_its_contract(
    copied: Path, file: str, line: str, broken: str
) -> None:
    whole = (copied / file).read_text()
    (copied / file).write_text(f"{whole}\n{line}\n")
    found = verdicts(copied)
    (copied / file).write_text(whole)
    assert found[broken] == "BROKEN"
