"""Text from anywhere, made fit for a terminal and a log."""

import logging
import sys
import traceback
from types import TracebackType

_OWN = frozenset(
    {
        *(
            "cli",
            "compat",
            "console",
            "deploy",
            "evaluation",
            "launcher",
            "monitor_service",
            "planning",
        ),
        *("planning", "reward_service", "rollout_service", "scene_data", "scene_graph", "services"),
        *("trainer", "weight_sync", "__main__"),
    }
)
"""Where this project's loggers are; all others are libraries'"""
_WRITERS = ("DeepSpeed", "datasets", "huggingface_hub", "transformers")
"""Libraries that give their logger a handler of its own when they are imported."""
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def printable(text: str) -> str:
    """The text with line breaks and tabs; what else could steer a terminal is shown as its code.

    Example: `"\\x1b[2J"` clears a screen, and becomes `"\\\\x1b[2J"`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else escaped(c) for c in text)


def escaped(character: str) -> str:
    """A character's code, such as `\\x1b`."""
    return character.encode("unicode_escape").decode()


def counted(number: int, noun: str) -> str:
    """Example: `1 picture`, `2 pictures`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def age(seconds: float) -> str:
    """A length of time in its largest unit, such as `2 min`."""
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    return f"{seconds / size:.0f} {unit}"


class OneLine(logging.Formatter):
    """Text from a request or from data can neither forge a log line nor steer a terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """As `logging.Formatter`, on one line."""
        return super().formatMessage(record).replace("\n", "\\n")

    def format(self, record: logging.LogRecord) -> str:
        """As `logging.Formatter`; a traceback is indented, so that none of it is like a line."""
        return printable(super().format(record)).replace("\n", "\n  ")


def print_safely() -> None:
    """Have warnings of a process without logs, and tracebacks, printed without control codes."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(OneLine("%(message)s"))

    def show(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        sys.stderr.write(printable("".join(traceback.format_exception(kind, error, at))))

    sys.excepthook = show


def for_people(record: logging.LogRecord) -> bool:
    """Whether it belongs on a terminal: of libraries only what failed."""
    return record.levelno >= logging.ERROR or record.name.partition(".")[0] in _OWN


class _Handed(logging.Logger):
    """A library's logger that writes nothing by itself: its records go to this process's logs."""

    propagate = property(lambda _: True, lambda _, __: None)

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        """The library's own; it would write on the terminal."""


def quiet_libraries() -> None:
    """Keep what libraries say off the terminal; call it before they are imported.

    Their warnings go where `services.telemetry.setup_logging` sends them, and nowhere in a command
    that has no log. What failed is shown.
    """
    logging.captureWarnings(True)
    usual = logging.getLoggerClass()
    logging.setLoggerClass(_Handed)
    for name in _WRITERS:
        logging.getLogger(name)
    logging.setLoggerClass(usual)
    if logging.lastResort is not None:
        logging.lastResort.addFilter(for_people)
