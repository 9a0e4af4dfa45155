"""What import-linter cannot say of the layout."""

import ast
import re
from pathlib import Path
from statistics import quantiles

ROOT = Path(__file__).parents[2]
APART = {"tests", "benchmarks", "build", "runs"}
LONGEST, MOST = 60, 21


def lengths() -> dict[str, int]:
    """Lines of each function of the product; its docstring does not count."""
    found = {}
    for file in ROOT.glob("[a-z]*/**/*.py"):
        name = file.relative_to(ROOT)
        if name.parts[0] in APART:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{name}:{node.lineno} {node.name}"] = length(node)
    return found


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function):
        said = function.body[0]
        assert said.end_lineno
        lines -= said.end_lineno - said.lineno + 1
    return lines


def test_no_function_is_long_and_nine_of_ten_are_short() -> None:
    found = lengths()
    assert {name: lines for name, lines in found.items() if lines > LONGEST} == {}
    assert quantiles(found.values(), n=10)[-1] <= MOST


def test_no_docstring_begins_in_the_middle_of_a_sentence() -> None:
    files = [file for file in ROOT.glob("[a-z]*/**/*.py") if "build" not in file.parts]
    assert len(files) > 500
    begins = [file for file in files if re.search(r'^\s*r?"""Of ', file.read_text(), re.M)]
    assert begins == []
