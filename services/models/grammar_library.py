"""Which library turns a schema or grammar into masks of tokens, and how it is asked to.

The sampler draws under these masks and the trainer replays them, so both have to be the same. It is
part of no release's promise that another version makes the same ones.
"""

from importlib.metadata import PackageNotFoundError, version

from services.errors import SettingsError

JSON_OPTIONS = {"any_whitespace": False, "separators": (",", ":")}
"""What vLLM asks of it for a JSON Schema where `disable_any_whitespace` is on, as it is here"""


def grammar_library() -> str:
    """The library's name and version, with its options: `xgrammar 0.2.8 without whitespace`.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        return f"xgrammar {version('xgrammar')} without whitespace"
    except PackageNotFoundError as error:
        raise SettingsError(
            "sampling.constrain: the trainer replays masks of tokens with xgrammar, which is not "
            "installed here: install the version that vLLM has"
        ) from error
