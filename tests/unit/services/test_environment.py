"""An environment that is not activated still has its programs."""

import os
import sys
from pathlib import Path

import pytest

from services.host.environment import own_programs_on_path, use_large_pages


def test_the_environments_programs_are_found_first_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    own_programs_on_path()
    own_programs_on_path()
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"


def test_large_pages_are_asked_for_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    use_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    use_large_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"
