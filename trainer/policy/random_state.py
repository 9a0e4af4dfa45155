"""A process's random states, all of them: torch's, CUDA's, numpy's and Python's."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch


def save_random_state(file: Path) -> None:
    """Write them; the file holds tensors, numbers and strings alone."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (
            name,
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            gauss,
        ),
        "python": random.getstate(),
    }
    torch.save(state, file)


def load_random_state(file: Path) -> None:
    """Continue from what `save_random_state` wrote."""
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
