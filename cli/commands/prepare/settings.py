"""`sgg-rl settings`: what a run's TOML may say."""

import json

import typer

settings_app = typer.Typer(help="What a run's TOML may say.", no_args_is_help=True)


@settings_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a run's TOML, with which an editor completes and checks it.

    configs/README.md says how an editor finds it.

    Example: sgg-rl settings schema
    """
    from services.settings.schema import settings_schema

    print(json.dumps(settings_schema(), indent=2, ensure_ascii=False))
