"""Each planted bug is found, so a run without a finding says something."""

from pathlib import Path

import pytest

from tests.chaos.bugs import BUGS, Bug, planted
from tests.chaos.run import under_faults


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_the_checker_finds(bug: Bug, tmp_path: Path) -> None:
    outcome = under_faults(
        tmp_path, bug.faults, min_steps=6, longest_s=45, root=planted(bug, tmp_path / "code")
    )
    assert any(bug.finds in broken for broken in outcome.broken), outcome.broken
