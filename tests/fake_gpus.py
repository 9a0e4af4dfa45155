"""A machine with GPUs, as the launcher sees it: `nvidia-smi`, and torch for them."""

from pathlib import Path

_NVIDIA_SMI = """\
#!/usr/bin/env python3
import sys
names = next(word for word in sys.argv if word.startswith("--query-gpu=")).partition("=")[2]
for index in range({number}):
    known = {{
        "index": str(index), "uuid": f"GPU-{{index}}aaa-bbb", "name": "NVIDIA A100-SXM4-40GB",
        "memory.total": "40960", "compute_cap": "8.0", "driver_version": "580.65.06",
    }}
    print(", ".join(known[name] for name in names.split(",")))
"""


def fake_gpus(folder: Path, number: int) -> Path:
    """Write both into a folder, to be first on `PATH` and on `sys.path`."""
    program = folder / "nvidia-smi"
    program.write_text(_NVIDIA_SMI.format(number=number))
    program.chmod(0o755)
    package = folder / "torch-2.13.0.dist-info"
    package.mkdir()
    version = folder / "torch" / "version.py"  # no package: the real one is found behind it
    version.parent.mkdir()
    version.write_text("__version__ = '2.13.0'\ncuda: str | None = '13.0'\n")
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n")
    return folder
