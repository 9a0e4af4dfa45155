"""What text from anywhere may not do to a terminal or a log."""

import io
import logging
import sys

import pytest
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.views.terminal import SafeConsole
from services.errors import EngineError
from services.http.problems import error_from_problem
from services.printable import OneLine, print_safely, printable

EVIL = "a\x1b[2Jb\x9b31mc\x07d\re\x7ff\N{RIGHT-TO-LEFT OVERRIDE}g"
SHOWN = r"a\x1b[2Jb\x9b31mc\x07d\re\x7ff\u202eg"


def test_line_breaks_and_letters_of_any_script_stay() -> None:
    text = "one\n\ttwo, \N{GREEK SMALL LETTER ALPHA} \N{CJK UNIFIED IDEOGRAPH-4E2D}"
    assert printable(text) == text
    assert printable(EVIL) == SHOWN
    assert printable(printable(EVIL)) == SHOWN
    assert printable("\ud83d") == r"\ud83d"


def test_every_error_of_the_project_is_printable() -> None:
    assert EngineError(EVIL).message == str(EngineError(EVIL)) == SHOWN
    told = error_from_problem(500, '{"detail": "a\\u001b[2J"}', asked="GET x")
    assert told.message == r"GET x answered HTTP 500: a\x1b[2J"
    assert (
        error_from_problem(502, EVIL, asked="GET x").message == f"GET x answered HTTP 502: {SHOWN}"
    )
    for text in ("{}", ""):
        assert error_from_problem(500, text, asked="GET x").message == "GET x answered HTTP 500"


def test_a_log_has_neither_control_codes_nor_forged_lines() -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(OneLine("%(levelname)s %(message)s"))
    logger = logging.getLogger("test-printable")
    logger.addHandler(handler)
    logger.propagate = False
    logger.warning("%s\nERROR forged", EVIL)
    try:
        raise ValueError(f"{EVIL}\nERROR forged")
    except ValueError:
        logger.exception("it failed")
    lines = out.getvalue().splitlines()
    assert lines[0] == f"WARNING {SHOWN}\\nERROR forged"
    assert lines[1] == "ERROR it failed"
    assert all(line.startswith("  ") for line in lines[2:])
    assert f"  ValueError: {SHOWN}" in lines
    assert "  ERROR forged" in lines


@pytest.mark.parametrize("live", [False, True])
def test_a_console_steers_its_terminal_by_itself_alone(live: bool) -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=True, width=200, color_system="standard")
    table = Table("column")
    table.add_row(Text(EVIL, style="red"))
    if live:
        with Live(table, console=console, auto_refresh=False):
            pass
    else:
        console.print(table)
        console.print(EVIL, markup=False, soft_wrap=True, highlight=False)
    text = out.getvalue()
    assert r"a\x1b[2J" in text
    assert "\x1b[31m" in text
    for code in ("\x1b[2J", "\x9b", "\x07", "\x7f", "\u202e"):
        assert code not in text


def test_tracebacks_and_warnings_without_a_log_are_printable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert logging.lastResort is not None
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    print_safely()
    error = ValueError(EVIL)
    sys.excepthook(ValueError, error, None)
    record = logging.LogRecord("cli", logging.WARNING, "", 0, EVIL, None, None)
    logging.lastResort.handle(record)
    assert capsys.readouterr().err == f"ValueError: {SHOWN}\n{SHOWN}\n"
