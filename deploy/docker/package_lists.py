"""Print what pyproject.toml says of packages, as a pyproject.toml of its own.

    python3 package_lists.py <pyproject.toml

For image layers that are built again only when these lists change, not with a version.
"""

import json
import sys
import tomllib


def main() -> None:
    """Read standard input and print."""
    project = tomllib.loads(sys.stdin.read())["project"]
    lines = ["[project]", 'name = "sgg-rl"', 'version = "0"']
    lines += [f"dependencies = {json.dumps(project['dependencies'])}"]
    lines += ["[project.optional-dependencies]"]
    lines += [f"{k} = {json.dumps(v)}" for k, v in project["optional-dependencies"].items()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
