"""An environment that is not activated still has its programs."""

import os
import sys
from pathlib import Path

import pytest

from services.host.environment import own_programs_on_path


def test_the_environments_programs_are_found_first_and_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    own_programs_on_path()
    own_programs_on_path()
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
