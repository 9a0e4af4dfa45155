"""Every module of this project, by name."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def own_modules() -> list[str]:
    """Those that the wheel has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]
    paths = [file.relative_to(ROOT).with_suffix("") for file in files]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths]
