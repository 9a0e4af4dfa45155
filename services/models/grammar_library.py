"""Which library turns a grammar into masks of tokens.

The sampler draws under these masks and the trainer replays them, so both have to be the same. It is
part of no release's promise that another version makes the same ones.
"""

from importlib.metadata import PackageNotFoundError, version

from services.errors import SettingsError


def grammar_library() -> str:
    """The library's name and version: `xgrammar 0.2.8`.

    Raises:
        SettingsError: It is not installed.
    """
    try:
        return f"xgrammar {version('xgrammar')}"
    except PackageNotFoundError as error:
        raise SettingsError(
            "sampling.constrain: the trainer replays masks of tokens with xgrammar, which is not "
            "installed here: install the version that vLLM has"
        ) from error
