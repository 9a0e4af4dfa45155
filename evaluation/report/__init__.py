"""The page that an evaluation leaves behind: `report.html`."""
