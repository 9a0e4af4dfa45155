"""Text of models and files, made fit for a terminal."""

from services.printable import escaped


def safe(text: str, width: int | None = None) -> str:
    """One printable line: what could move the cursor or turn text around is shown as its code.

    Args:
        text: From anywhere.
        width: Cut after so many characters of it.
    """
    shown = "".join(c if c.isprintable() else escaped(c) for c in text[:width])
    return shown if width is None or len(text) <= width else f"{shown}..."
