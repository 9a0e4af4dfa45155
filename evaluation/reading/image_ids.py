"""Image ids that do not match: examples of both sides, and what probably sets them apart.

Nothing is matched by this: two images must not become one by a guess.
"""

import re
from collections.abc import Callable, Collection

_EXTENSION = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|json)$", re.IGNORECASE)
_NUM_SHOWN = 2

_Step = tuple[str, Callable[[str], str]]
_STEPS: tuple[_Step, ...] = (
    ("with spaces around it?", str.strip),
    ("with a folder?", lambda name: re.split(r"[/\\]", name)[-1]),
    ("with a file's extension?", lambda name: _EXTENSION.sub("", name)),
    ("a number with a fraction?", lambda name: re.sub(r"^(\d+)\.0+$", r"\1", name)),
    ("with a name before the number?", lambda name: re.sub(r"^.*\D(?=\d+$)", "", name)),
    ("zero-padded?", lambda name: re.sub(r"^0+(?=\d+$)", "", name)),
    ("in another case?", str.casefold),
)
"""What may set two spellings of an id apart, and the form without it."""


class KnownIds:
    """The ids of the references, by their plainest form.

    Example: `KnownIds(["000000000139"]).hint("139")` is `the predictions have '139', the reference
    has '000000000139': zero-padded? Write both alike`
    """

    def __init__(self, ids: Collection[str]) -> None:
        self._shown = ", ".join(map(repr, [*ids][:_NUM_SHOWN]))
        self._ids = {_plainest(name): name for name in reversed([*ids])}

    def hint(self, image_id: str) -> str:
        """An id that is not known beside the one that it may mean, or beside examples."""
        has = f"the predictions have {image_id!r}, the reference has"
        known = self._ids.get(_plainest(image_id))
        if known is None:
            return f"{has} ids such as {self._shown}"
        return f"{has} {known!r}: {' '.join(_reasons(image_id, known))} Write both alike"


def _plainest(name: str) -> str:
    for _, plain in _STEPS:
        name = plain(name)
    return name


def _reasons(one: str, other: str) -> list[str]:
    """What sets two ids of the same plainest form apart."""
    found = []
    for words, plain in _STEPS:
        plain_one, plain_other = plain(one), plain(other)
        changed = plain_one != one, plain_other != other
        if changed[0] != changed[1] or (changed[0] and one != other and plain_one == plain_other):
            found.append(words)
        one, other = plain_one, plain_other
    return found
