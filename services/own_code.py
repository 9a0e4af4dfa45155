"""A Python file of the user's, and what it imports from its folder: code that a run depends on."""

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path


def source_files(file: Path) -> list[Path]:
    """The file, then each Python file of its folder that it imports, directly or through another.

    Nothing is executed; an import by a name that the code computes is not seen.

    Raises:
        SyntaxError: One of them is not Python.
        OSError: It cannot be read.
    """
    folder = file.resolve().parent
    found, waiting = dict[Path, None](), [file.resolve()]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = None
            waiting += _imported(one, folder)
    return list(found)


def source_digest(file: Path) -> str:
    """16 digits of the SHA-256 over the names and bytes of `source_files`."""
    digest = hashlib.sha256()
    first, *others = source_files(file)
    for one in (first, *sorted(others)):
        content = hashlib.sha256(one.read_bytes()).hexdigest()
        digest.update(f"{one.relative_to(first.parent)} {content}\n".encode())
    return digest.hexdigest()[:16]


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """The files of the folder that the imports of one of them may mean."""
    if file.suffix != ".py":
        return
    for node in ast.walk(ast.parse(file.read_bytes(), filename=str(file))):
        if isinstance(node, ast.Import):
            base, names = folder, [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = file.parents[node.level - 1] if node.level else folder
            head = f"{node.module}." if node.module else ""
            names = [f"{head}{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                path = base.joinpath(*parts[:end])
                places = (path.with_name(f"{path.name}.py"), path / "__init__.py")
                yield from (p for p in places if p.is_file() and p.is_relative_to(folder))
