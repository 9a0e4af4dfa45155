"""Which model fits which hardware, by the estimate of `sgg-rl train --dry-run`, in Markdown.

python -m benchmarks.fits
"""

from pathlib import Path

from planning.estimate import estimate_memory
from planning.shapes import KNOWN, model_shape
from services.settings import load_settings

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPE = CONFIGS / "r1-sgg/vg150-closed-2b-zero.toml"


def main() -> None:
    """Print GiB of a trainer GPU at its fullest for each model and hardware, and what there is."""
    files = sorted((CONFIGS / "hardware").glob("*.toml"))
    runs = [load_settings([RECIPE, file], [], {}) for file in files]
    print("| model |", " | ".join(f"`{file.stem}`" for file in files), "|")
    print("|---" * (len(files) + 1) + "|")
    for name in KNOWN:
        needed = [sum(estimate_memory(run, model_shape(name)).values()) for run in runs]
        print(f"| {name.partition('/')[2]} |", " | ".join(f"{gib:.0f}" for gib in needed), "|")
    print("| of |", " | ".join(f"{run.cluster.gpu_memory_gib:g}" for run in runs), "|")


if __name__ == "__main__":
    main()
