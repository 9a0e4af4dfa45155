"""Print the packages that an extra of pyproject.toml needs, one a line.

    python3 requirements.py pyproject.toml [EXTRA]

For image layers that are built before, and kept without, the project's own code.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def requirements(project: dict[str, list[str]], extra: str) -> Iterator[str]:
    """The extra's packages, with those of the extras that it names."""
    for line in project[extra]:
        own = re.fullmatch(r"sgg-rl\[(.+)\]", line)
        if own is None:
            yield line
            continue
        for name in own[1].split(","):
            yield from requirements(project, name)


def main() -> None:
    """Read the arguments and print."""
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    extras = project["optional-dependencies"] | {"": []}
    found = [*project["dependencies"], *requirements(extras, "".join(sys.argv[2:]))]
    sys.stdout.write("\n".join(found) + "\n")


if __name__ == "__main__":
    main()
