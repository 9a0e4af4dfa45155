"""The settings of a run beside the defaults, and beside another run's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from services.settings import Settings


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting of a run."""

    name: str
    value: str
    default: str | None
    """None where it has no default, or this release has no such setting."""
    meaning: str
    is_known: bool
    """Whether this release has it."""

    @property
    def is_changed(self) -> bool:
        """Whether it is not as it would be by itself."""
        return self.default is not None and self.value != self.default


def setting_rows(tree: Mapping[str, Any]) -> dict[str, list[SettingRow]]:
    """By table of the file, as it stands there: it may be another release's."""
    return {
        section: [_row(section, name, value) for name, value in fields.items()]
        for section, fields in tree.items()
        if isinstance(fields, Mapping)
    }


def differing(trees: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all files: name, and the value in each; "" for unset."""
    flat = [
        {
            f"{section}.{name}": _text(value)
            for section, fields in tree.items()
            if isinstance(fields, Mapping)
            for name, value in fields.items()
        }
        for tree in trees
    ]
    names = dict.fromkeys(name for tree in flat for name in tree)
    rows = [(name, [tree.get(name, "") for tree in flat]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _row(section: str, name: str, value: object) -> SettingRow:
    table: Any = Settings.model_fields[section].annotation if _has(Settings, section) else None
    if table is None or not _has(table, name):
        return SettingRow(name, _text(value), None, "", is_known=False)
    field = table.model_fields[name]
    default = field.get_default(call_default_factory=True)
    known = default is not PydanticUndefined
    shown = _text(to_jsonable_python(default)) if known else None
    return SettingRow(
        name, _text(value), shown, (field.description or "").replace("`", ""), is_known=True
    )


def _has(table: type[BaseModel], name: str) -> bool:
    return name in table.model_fields


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
