"""Runs a notebook of examples/ with a kernel of its own, as Jupyter does."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_notebook(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, timeout_s: int = 60
) -> str:
    """What its cells print, drawings as `<svg>`; fails where a cell does.

    Args:
        name: In examples/.
        folder: Gets what kernel and notebook leave.
        monkeypatch: Of the test.
        timeout_s: Of one cell.
    """
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "TMPDIR"):
        monkeypatch.setenv(variable, str(folder))
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "stored with outputs"
    NotebookClient(
        notebook,
        timeout=timeout_s,
        kernel_name="python3",
        resources={"metadata": {"path": str(EXAMPLES)}},
    ).execute()
    return "\n".join(
        _shown(output) for cell in notebook.cells for output in cell.get("outputs", ())
    )


def _shown(output: Any) -> str:
    if output.output_type == "stream":
        assert output.name == "stdout", f"noise: {output.text}"
        return str(output.text)
    data = output.data
    picture = "<svg>" if data.get("image/svg+xml", "").startswith("<svg") else ""
    return str(data["text/plain"]) + picture
