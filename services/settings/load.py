"""Settings from files, environment and command line, and back to a file.

Sources, later ones win: TOML file, environment (`SGG__SECTION__FIELD`), command line (`--set
section.field=value`). A misspelt key is refused in all three, by name. A file may stand on others:
`extends = ["base.toml"]`, paths from its own folder, later ones over earlier ones and the file over
them all. Settings that ship in `configs/` have names: `demo`, `r1-sgg/vg150-closed-2b-zero`.
"""

import difflib
import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from services.bundled import bundled
from services.errors import SettingsError
from services.host.environment import child_environment
from services.settings.section import expanded, meant
from services.settings.tree import Settings

ENV_PREFIX = "SGG__"
_SECRET_FILES = ("_TOKEN_FILE", "__PASSWORD_FILE")
"""Ends of variables that name secrets: an empty one must not unset what the file names."""
_NODES = "Nodes follow from trainer.num_ranks, cluster.num_rollout_servers and deploy.gpus_per_node"
_GONE = {"deploy.trainer_nodes": _NODES, "deploy.rollout_nodes": _NODES}
"""Settings of earlier releases, and what stands for them now."""


def load_settings(
    files: Path | Sequence[Path],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    below: Mapping[str, Any] | None = None,
) -> Settings:
    """Read a run's settings.

    Args:
        files: TOML file, or several: later ones over earlier ones; none where the overrides name
            all that has no default. A shipped one by its name.
        overrides: `section.field=value` strings, as given to `--set`; values are TOML, or plain
            text. `section.field=` unsets a field that is optional.
        environment: Defaults to the process's.
        below: Tables under those of the files, for a command that needs no more of them.

    Raises:
        SettingsError: The file is missing or malformed, or a key in any source is unknown or out of
            range.
    """
    files = [files] if isinstance(files, Path) else files
    under = {section: {**fields} for section, fields in (below or {}).items()}
    tree = _merged([under, *(_read(_named_file(file)) for file in files)])
    if files:
        _check(tree, " and ".join(map(str, files)))
    given: dict[str, str] = {}
    for key, text in sorted((child_environment() if environment is None else environment).items()):
        if key.startswith(ENV_PREFIX):
            if not text.strip() and key.endswith(_SECRET_FILES):
                raise SettingsError(
                    f"environment variable {key} is set and empty: name the file, or unset it"
                )
            names = key[len(ENV_PREFIX) :].lower().split("__")
            where = given[".".join(names)] = f"environment variable {key}"
            _put(tree, names, text, where)
    for item in overrides:
        name, equals, text = item.partition("=")
        where = f"--set {''.join(itertools.takewhile(_is_of_name, name.strip()))}"
        if not equals:
            raise SettingsError(f"{where}: write section.field=value")
        given[name.strip()] = where
        _put(tree, name.strip().split("."), text.strip(), where)
    return _check(tree, "the settings", given)


def dump_settings(settings: Settings) -> str:
    """The resolved settings as TOML; without unset optional fields."""
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True))


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's tables, over those of the files that it extends."""
    if not path.is_file():
        extended = f", which {above[-1]} extends" if above else ""
        ships = path.parts[0] == "configs" and bundled(str(path)).is_file()
        name = path.relative_to("configs").with_suffix("") if ships else None
        remedy = f": what ships is named without a folder, --config {name}" if ships else ""
        raise SettingsError(f"no settings file at {path}{extended}{remedy}")
    if path.resolve() in (file.resolve() for file in above):
        raise SettingsError(f"{path} extends itself, by way of {above[-1]}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {error}") from error
    names = tree.pop("extends", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingsError(f"{path}: extends is a list of files")
    try:
        bases = [_named_file(path.parent / expanded(name), name) for name in names]
    except ValueError as error:
        raise SettingsError(f"{path}: extends: {error}") from error
    return _merged([*(_read(file, (*above, path)) for file in bases), tree])


def _named_file(path: Path, name: str | None = None) -> Path:
    """A file, or the shipped one of that name.

    Args:
        path: As it is given, or as it is seen from the file that extends it.
        name: As that file has it.
    """
    if path.suffix == ".toml" or path.is_file():
        return path
    shipped = bundled("configs")
    file = shipped / f"{name or path}.toml"
    if file.is_file():
        return file
    names = [str(f.relative_to(shipped).with_suffix("")) for f in shipped.rglob("*.toml")]
    near = difflib.get_close_matches(str(name or path), names, n=3) or ["demo"]
    raise SettingsError(
        f"no settings file at {path}, and none of that name ships: name a .toml of yours, or one "
        f"of {shipped}, such as {', '.join(near)}"
    )


def _merged(trees: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Section by section, later ones over earlier ones."""
    merged: dict[str, Any] = {}
    for part in trees:
        for section, fields in part.items():
            below = merged.get(section)
            both = isinstance(below, dict) and isinstance(fields, dict)
            merged[section] = below | fields if both else fields
    return merged


def _is_of_name(character: str) -> bool:
    """What follows a setting's name is not repeated in messages: it may be a password."""
    return character.isalnum() or character in "._"


def _put(tree: dict[str, Any], keys: list[str], text: str, where: str) -> None:
    if len(keys) != 2 or keys[0] not in Settings.model_fields or keys[1] not in _fields(keys[0]):
        raise SettingsError(f"{where}: {_unknown(keys)}")
    fields = _fields(keys[0])
    if not text and fields[keys[1]].default is None:
        tree.get(keys[0], {}).pop(keys[1], None)
        return
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # plain text, as a shell user writes it: run.name=demo
    is_text = fields[keys[1]].annotation is str
    tree.setdefault(keys[0], {})[keys[1]] = str(value) if is_text else value


def _check(tree: dict[str, Any], where: str, given: Mapping[str, str] | None = None) -> Settings:
    """Args: where: What is wrong, where it is none of the settings in `given`, by their names."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        lines, wrong = [], set()
        for mistake in error.errors():
            keys = [str(key) for key in mistake["loc"]]
            wrong.add((given or {}).get(".".join(keys[:2]), where))
            is_unknown = mistake["type"] == "extra_forbidden" and len(keys) <= 2
            why = _unknown(keys) if is_unknown else mistake["msg"].removeprefix("Value error, ")
            lines.append("  " + ": ".join(filter(None, (".".join(keys), why))))
        cannot = f"cannot use {' and '.join(sorted(wrong))}:"
        raise SettingsError("\n".join([cannot, *lines])) from error


def _fields(section: str) -> dict[str, Any]:
    table: Any = Settings.model_fields[section].annotation
    return dict(table.model_fields)


def _unknown(keys: list[str]) -> str:
    """What to say of a setting that does not exist: of another section, misspelt, or neither."""
    if len(keys) > 2:
        return "a setting is a section and a field, such as trainer.num_steps"
    section, field = keys[0], keys[-1]
    if gone := _GONE.get(f"{section}.{field}"):
        return f"this setting is gone: remove the line. {gone}"
    if elsewhere := [f"{s}.{field}" for s in Settings.model_fields if field in _fields(s)]:
        return f"no such setting; did you mean {' or '.join(elsewhere)}?"
    if len(keys) == 2 and section in Settings.model_fields:
        return f"[{section}] has no '{field}'; {meant(field, _fields(section))}"
    return f"no such section; {meant(section, Settings.model_fields)}"
