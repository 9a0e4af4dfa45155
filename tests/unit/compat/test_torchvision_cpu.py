"""Looking for torchvision costs nothing; loading it works beside a CPU build of torch."""

import subprocess
import sys

PROBE = """
import importlib.util, sys
import compat.torchvision_cpu
compat.torchvision_cpu.activate()
spec = importlib.util.find_spec("torchvision")
print(spec is not None, "torch" in sys.modules)
import torchvision, torch
print(hasattr(torch.ops.torchvision, "nms"), torchvision.__spec__.origin == spec.origin)
"""


def test_torch_is_imported_when_torchvision_is_loaded_and_not_before() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True", "True"]
