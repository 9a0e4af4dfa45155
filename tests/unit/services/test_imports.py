"""Starts and ends of processes without the garbage collector."""

import gc
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest

from services.host.imports import many_imports
from tests.processes import ROOT

ENDS = """
import sys
from services.host.imports import end_at_once

class Node:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("collected", flush=True)

if sys.argv[1:]:
    end_at_once()
sys.modules["a circle"] = Node()
"""


def test_what_is_imported_is_never_looked_through() -> None:
    with many_imports():
        assert not gc.isenabled()
        made: list[list[int]] = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert not {id(one) for one in gc.get_objects()} & {id(one) for one in made}


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), many_imports():
        raise ImportError
    assert gc.isenabled()


def test_what_only_others_use_is_not_imported_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards it is there again, for an embedding model; one that is there stays as it is."""
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    assert find_spec("sklearn")
    with many_imports():
        assert find_spec("sklearn") is None
        with many_imports():
            pass
        assert find_spec("sklearn") is None
    assert find_spec("sklearn")
    monkeypatch.setitem(sys.modules, "sklearn", here := ModuleType("sklearn"))
    with many_imports():
        assert sys.modules["sklearn"] is here


@pytest.mark.parametrize(("at_once", "said"), [((), "collected\n"), (("at once",), "")])
def test_an_end_collects_nothing(at_once: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-c", ENDS, *at_once]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == said


def test_nothing_comes_back_into_sight() -> None:
    code = "import gc; from services.host.imports import end_at_once; end_at_once(); gc.freeze()"
    shown = "gc.unfreeze(); print(gc.get_freeze_count() > 1000)"
    command = [sys.executable, "-c", f"{code}; {shown}"]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout == b"True\n"
