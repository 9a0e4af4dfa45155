"""Each call of ours into torch, vLLM, DeepSpeed and their like fits the installed signature.

Calls are read from our code, so they are not written here again. Methods of objects are not found
that way: `test_signatures.py` makes our functions call those.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from tests.cuda.modules import own_modules

LIBRARIES = {"torch", "vllm", "deepspeed", "transformers", "peft", "trl", "safetensors"}
ON_GPUS = {
    "torch.cuda.current_device",
    "torch.cuda.get_device_properties",
    "torch.cuda.get_rng_state",
    "torch.cuda.ipc_collect",
    "torch.cuda.is_bf16_supported",
    "torch.cuda.set_device",
    "torch.cuda.set_rng_state",
    "deepspeed.init_distributed",
    "deepspeed.initialize",
    "AsyncEngineArgs",
    "IPCWeightTransferEngine",
    "IPCWeightTransferUpdateInfo",
    "NCCLLibrary",
    "NCCLTrainerWeightTransferEngine",
    "NCCLWeightTransferEngine",
    "NCCLWeightTransferInitInfo",
    "NCCLWeightTransferUpdateInfo",
    "WeightTransferConfig",
    "WeightTransferInitRequest",
    "WeightTransferUpdateRequest",
    "reduce_tensor",
    "uid_init_process_group",
}
"""Calls that only a GPU, or packages for one, make of use."""


class Call(NamedTuple):
    """One call in our code."""

    name: str
    """As it is written there."""
    node: ast.Call
    target: Any
    """What it calls; None where the installed package has nothing of that name."""


def calls(module: str) -> Iterator[Call]:
    """Those into the libraries, whose target a name leads to."""
    loaded = importlib.import_module(module)
    tree = ast.parse(inspect.getsource(loaded) or "")
    names = vars(loaded) | dict(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (path := _path(node.func)) and path[0] in names:
            target, owner = names[path[0]], names[path[0]]
            for attribute in path[1:]:
                owner, target = target, getattr(target, attribute, None)
            if _is_foreign(target) or (target is None and _is_foreign(owner)):
                yield Call(".".join(path), node, target)


def misfit(call: Call) -> str | None:
    """Why the installed signature does not take the call; None where it does."""
    if call.target is None:
        return "there is no such thing"
    try:
        # transformers copies class methods from bound ones: `__wrapped__` lacks `cls` already.
        follow = not inspect.ismethod(call.target)
        signature = inspect.signature(call.target, follow_wrapped=follow)
    except (TypeError, ValueError):  # written in C, and silent
        return None
    keywords = {word.arg: ... for word in call.node.keywords if word.arg is not None}
    starred = any(isinstance(value, ast.Starred) for value in call.node.args)
    positional = [] if starred else [...] * len(call.node.args)
    is_whole = not starred and len(keywords) == len(call.node.keywords)
    try:
        (signature.bind if is_whole else signature.bind_partial)(*positional, **keywords)
    except TypeError as error:
        return str(error)
    return None


def _imported(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """What is imported inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            source = importlib.import_module(node.module or "")
            for alias in node.names:
                yield alias.asname or alias.name, getattr(source, alias.name)


def _path(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (before := _path(node.value)):
        return [*before, node.attr]
    return []


def _is_foreign(target: Any) -> bool:
    home = target.__name__ if isinstance(target, ModuleType) else getattr(target, "__module__", "")
    return str(home).split(".")[0] in LIBRARIES


@pytest.mark.parametrize("module", own_modules())
def test_calls_fit(module: str) -> None:
    wrong = [
        f"{module}:{call.node.lineno}: {call.name}: {why}"
        for call in calls(module)
        if (why := misfit(call)) is not None
    ]
    assert wrong == []


def test_the_calls_that_only_gpus_make_are_among_them() -> None:
    found = {call.name for module in own_modules() for call in calls(module)}
    assert ON_GPUS - found == set()
