"""What is installed is what `constraints/cuda.txt` says, and its parts fit together."""

import importlib.metadata
import re
import subprocess
import sysconfig
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.cuda.modules import ROOT

# Not by `sys.path`: setuptools puts packages of its own there.
INSTALLED: dict[str, importlib.metadata.Distribution] = {
    canonicalize_name(found.metadata["Name"]): found
    for found in importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
}
SETUP = {"sgg-rl", "pip", "uv"}
"""Not of the list: this project, and what installs."""
BY_PYTHON = {"async-timeout"}
"""Installed before Python 3.11.3 alone."""


def test_installed_are_the_versions_of_the_constraints() -> None:
    text = (ROOT / "constraints/cuda.txt").read_text()
    pins = re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    wanted: dict[str, str] = {canonicalize_name(name): version for name, version in pins}
    found = {name: one.version for name, one in INSTALLED.items() if name not in SETUP}
    assert {n: v for n, v in found.items() if wanted.get(canonicalize_name(n)) != v} == {}
    assert wanted.keys() - found.keys() <= BY_PYTHON


def test_every_package_has_what_it_requires() -> None:
    lacking = []
    for name, found in INSTALLED.items():
        for text in found.requires or []:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            there = INSTALLED.get(canonicalize_name(requirement.name))
            version = None if there is None else there.version
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                lacking.append(f"{name} requires {text}; found {version}")
    assert lacking == []


def test_compiler_and_headers_are_of_torchs_cuda() -> None:
    """One release of all: nvcc refuses to compile for headers of another."""
    folder = Path(str(INSTALLED["nvidia-cuda-nvcc"].locate_file("nvidia/cu13")))
    said = subprocess.run([folder / "bin/nvcc", "--version"], capture_output=True, text=True)
    nvcc = re.search(r"release ([\d.]+),", said.stdout)
    headers = (folder / "include/cuda_runtime_api.h").read_text()
    number = re.search(r"#define CUDART_VERSION +(\d+)", headers)
    assert nvcc is not None, said
    assert number is not None
    runtime = f"{int(number[1]) // 1000}.{int(number[1]) % 1000 // 10}"
    releases = {nvcc[1], runtime, torch.version.cuda}
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime"):
        releases.add(INSTALLED[name].version.rpartition(".")[0])
    assert len(releases) == 1, releases
