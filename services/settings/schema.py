"""The JSON Schema of a run's TOML: what an editor completes, explains and checks."""

from typing import Any

from services.settings.tree import Settings

_EXTENDS = {
    "type": "array",
    "items": {"type": "string"},
    "description": "Files that this one builds on, paths from its own folder; later ones over "
    "earlier ones, and this file over all.",
}


def settings_schema() -> dict[str, Any]:
    """The schema of one file, by the models that check it.

    Nothing is required: a file may extend others, or lie over them.

    Example: `settings_schema()["$defs"]["TrainerSettings"]["properties"]["group_size"]["minimum"]`
    is 2
    """
    schema = Settings.model_json_schema()
    sections = schema["properties"]
    for table in (schema, *schema["$defs"].values()):
        table.pop("required", None)
    for section in sections.values():
        section.pop("default", None)  # the whole table once more
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "properties": {"extends": _EXTENDS, **sections},
    }
