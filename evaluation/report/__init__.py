"""The page that an evaluation leaves behind: `report.html`."""

from evaluation.report.page import write_report

__all__ = ["write_report"]
