from pathlib import Path
from typing import Any

import pytest

from services.errors import SettingsError
from services.settings import Settings
from trainer.policy.state_layout import check_layout, write_layout


def settings(**sections: dict[str, Any]) -> Settings:
    return Settings.model_validate({"model": {"path": "m"}, "data": {"train": "t"}, **sections})


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("deepspeed", "zero_stage", 3),
        ("trainer", "freeze_vision_tower", True),
        ("lora", "rank", 8),
    ],
)
def test_a_resume_with_another_layout_is_refused_by_name(
    tmp_path: Path, section: str, field: str, value: object
) -> None:
    write_layout(settings(), tmp_path)
    check_layout(settings(trainer={"learning_rate": 1e-3}), tmp_path)
    with pytest.raises(SettingsError, match=rf"{section}\.{field} = .*now it is {value}"):
        check_layout(settings(**{section: {field: value}}), tmp_path)


def test_a_folder_without_one_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no layout.json"):
        check_layout(settings(), tmp_path)
