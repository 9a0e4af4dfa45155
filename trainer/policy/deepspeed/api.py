"""All that is taken from DeepSpeed: its engine, its checks of settings, and its compiled ops.

No other file imports it. Its ops are built behind one lock and in one folder (`op_lock`);

    python -m trainer.policy.deepspeed.api

builds what a trainer on this machine loads at its start: a minute that the first run would wait.
With GPUs that is nothing. Imports are inside functions, because DeepSpeed logs to stdout as it is
imported.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, redirect_stdout
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from services.errors import SggError
from trainer.policy.deepspeed.op_lock import built_op, sole_loader


def init_distributed(backend: str, timeout: timedelta) -> None:
    """Have DeepSpeed use torch's process group, which is there already."""
    import deepspeed

    guard_ops()
    deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)


def initialize(
    model: nn.Module, config: dict[str, Any], parameters: Sequence[nn.Parameter] | None = None
) -> tuple[Any, Any]:
    """DeepSpeed's engine around a model, and its optimizer of `parameters`."""
    import deepspeed

    engine, optimizer, *_ = deepspeed.initialize(
        model=model, model_parameters=parameters, config=config
    )
    return engine, optimizer


def gathered(parameters: Sequence[nn.Parameter], *, enabled: bool) -> AbstractContextManager[Any]:
    """Parameters are whole on every rank as long as it is open; nothing where not `enabled`."""
    import deepspeed

    gathering: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
        list(parameters), enabled=enabled
    )
    return gathering


def forget_gradients(optimizer: Any) -> None:
    """Drop the gradients of a step that was left out.

    DeepSpeed 0.19 does so by itself, but for sums in float32 of a bfloat16 model whose optimizer
    is offloaded at ZeRO stage 1 or 2: NaN would stay in them, in all steps that follow.

    Args:
        optimizer: DeepSpeed's.
    """
    if getattr(optimizer, "cpu_offload", False) and hasattr(optimizer, "averaged_gradients"):
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None


def guard_ops() -> None:
    """Have all ops that DeepSpeed loads in this process from now on pass the lock.

    DeepSpeed builds an op wherever it first needs it; all ways lead through one function.
    """
    from deepspeed.ops.op_builder.builder import OpBuilder

    build_and_load = OpBuilder.jit_load
    if build_and_load.__module__ == __name__:
        return

    def load(builder: Any, verbose: bool = False) -> Any:
        library = built_op(builder.name)
        if library is None:
            with sole_loader(builder.name):
                return build_and_load(builder, verbose)
        module = OpBuilder._loaded_ops[builder.name] = _imported(library)
        return module

    OpBuilder.jit_load = load


def zero_problems(zero: dict[str, Any]) -> Iterator[str]:
    """What DeepSpeed does not know in `zero_optimization`, and values that it does not take."""
    with redirect_stdout(sys.stderr):  # it says there what it has found
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        for problem in error.errors():
            name = ".".join(map(str, ("zero_optimization", *problem["loc"])))
            yield f"{name} ({problem['input']!r}): DeepSpeed says: {problem['msg']}"


def optimizer_problems(optimizer: dict[str, Any]) -> Iterator[str]:
    """An optimizer that there is not, or parameters that torch's own does not take.

    Those of the optimizers that DeepSpeed compiles are known when they are compiled.
    """
    with redirect_stdout(sys.stderr):
        from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    name, parameters = optimizer["type"], dict(optimizer["params"])
    compiled = str(name).lower() in DEEPSPEED_OPTIMIZERS and not parameters.pop("torch_adam", False)
    if compiled:
        return
    torch_names = {"adam": "Adam", "adamw": "AdamW"}  # of DeepSpeed's, under torch_adam
    kind = getattr(torch.optim, torch_names.get(str(name).lower(), str(name)), None)
    if not isinstance(kind, type):
        yield f"optimizer.type ({name!r}): neither DeepSpeed nor torch.optim has it"
        return
    parameters.pop("adam_w_mode", None)
    try:
        kind([torch.nn.Parameter(torch.zeros(1))], **parameters)
    except (TypeError, ValueError) as error:
        yield f"optimizer.params: {name} says: {error}"


def _imported(library: Path) -> Any:
    spec = spec_from_file_location(library.stem, library)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library} is not a module")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Build, and print one line."""
    try:
        with redirect_stdout(StringIO()):
            guard_ops()
            from deepspeed.comm.torch import build_shm_op

            op = build_shm_op()
    except SggError as error:
        sys.exit(str(error))
    except RuntimeError as error:  # torch's: all that the compiler printed
        lines = str(error).splitlines()
        sys.exit(next((line for line in lines if "error: " in line), lines[0]))
    print(f"DeepSpeed's op: {op.__file__}" if op else "DeepSpeed needs no op here")  # noqa: T201


if __name__ == "__main__":
    main()
