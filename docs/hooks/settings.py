"""The page of settings, by the models that check them."""

from docs.hooks.fields import prose, table
from services.settings import Settings

_START = """# Settings

```toml
#:schema ./settings.schema.json
[model]
path = "Qwen/Qwen2-VL-2B-Instruct"

[data]
train = "data/train.jsonl"

[trainer]
num_steps = 200
```

is a whole run: `model.path` and `data.train` have no default, every other setting has one. A
setting comes from the TOML file, over that from the environment (`SGG__TRAINER__NUM_STEPS=200`),
and over that from the command line (`--set trainer.num_steps=200`). A misspelt name or a value
out of range is refused with a line that says what is allowed. [Runs](../configs.md) has the
files that come with the project.

`sgg-rl settings schema` prints what this page says as JSON Schema ([the
file](settings.schema.json)). With the first line of the example an editor completes, explains
and checks ([how](../configs.md#in-an-editor)).
"""


def page() -> str:
    """The Markdown: a table for each section."""
    schema = Settings.model_json_schema()
    parts = [_START]
    for name, section in schema["properties"].items():
        model = schema["$defs"][section["$ref"].rsplit("/", 1)[1]]
        parts.append(f"## `[{name}]` {{ #{name} }}\n\n{prose(model['description'])}\n")
        parts.append(table(model, f"{name}.") + "\n")
    return "\n".join(parts)


def is_setting(name: str) -> bool:
    """Whether the page has it. Example: `trainer.num_steps`."""
    section, _, field = name.partition(".")
    found = Settings.model_fields.get(section)
    return found is not None and field in getattr(found.annotation, "model_fields", ())
