"""The files that ship with the code and are no modules: settings, the toy model, pins, Compose's.

A source tree has them at its top. In a wheel they are in `services/bundle`, each at the same path
from there (`force-include` of pyproject.toml).
"""

from importlib.resources import files
from pathlib import Path

TOY_MODELS = ("toy-start", "toy-start-2")
"""The models that the demo starts from on each level, as settings and commands name them"""


def bundled(path: str) -> Path:
    """A file or folder that ships.

    Example: `bundled("configs/demo.toml")`

    Args:
        path: From the top of the source tree.
    """
    package = Path(str(files("services")))
    of_wheel = package / "bundle"
    return (of_wheel if of_wheel.is_dir() else package.parent) / path


def toy_start(name: str = "toy-start") -> Path:
    """The folder of one of `TOY_MODELS`."""
    return bundled("assets") / name
