import pytest

from evaluation.heldout import check_version
from evaluation.reading.lines import GraphLine
from services.errors import ConflictError


def answered(oldest: int, newest: int) -> GraphLine:
    return GraphLine(
        image_id="1",
        width=1,
        height=1,
        objects=[],
        relationships=[],
        policy_versions=(oldest, newest),
    )


def test_answers_of_another_version_are_no_result() -> None:
    check_version([answered(3, 3), answered(3, 3)], 3)
    with pytest.raises(ConflictError, match=r"\[0, 4\] answered, not version 3"):
        check_version([answered(3, 4), answered(0, 3)], 3)
