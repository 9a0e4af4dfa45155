"""Makes the ordinary torchvision wheel importable beside a CPU build of torch.

That wheel's C++ library is linked against CUDA. Without CUDA it does not load, the operators that
it would define are missing, and `import torchvision` fails while registering their meta kernels.
The Qwen processors of transformers and vLLM only want torchvision's Python transforms. So: where
torch has no CUDA and torchvision's library does not load, declare the missing operators before
torchvision is first imported. Nothing happens anywhere else.

`make setup` writes a `.pth` file that imports this module at every start of the environment's
Python, because vLLM starts processes of its own: `python -m compat.torchvision_cpu --install`.
"""

import importlib.abc
import importlib.machinery
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

PTH_NAME = "zz_sgg_rl_torchvision_cpu.pth"
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Finds what the other finders find; only loading torchvision declares its operators.

    Libraries look for torchvision without ever loading it, and torch takes seconds to import.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _TorchvisionLoader(spec.loader.name, spec.loader.path)
        return spec


class _TorchvisionLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        _declare_missing_operators(Path(self.path).parent)
        super().exec_module(module)


def _declare_missing_operators(torchvision_folder: Path) -> None:
    import torch

    if torch.version.cuda is not None:
        return
    for library in torchvision_folder.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue  # linked against CUDA: the case this module exists for
        return
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", schema)


def activate() -> None:
    """Watch for the first import of torchvision. Costs nothing until then."""
    if "torchvision" not in sys.modules and not any(
        isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path
    ):
        sys.meta_path.insert(0, _TorchvisionFinder())


def install() -> Path:
    """Write the `.pth` file into this environment's site-packages."""
    file = Path(sysconfig.get_path("purelib")) / PTH_NAME
    file.write_text("import compat.torchvision_cpu as shim; shim.activate()\n")
    return file


if __name__ == "__main__":
    if sys.argv[1:] != ["--install"]:
        sys.exit("usage: python -m compat.torchvision_cpu --install")
    install()
