"""Writes the dashboards: `python -m deploy.grafana.build`. What they show is in `panels.py`.

Grafana's JSON repeats itself; here is what all panels have in common.
"""

import json
import sys
from pathlib import Path
from typing import Any

from deploy.grafana.panels import DASHBOARDS, Dashboard, Panel

FOLDER = Path(__file__).parent / "dashboards"
_SCHEMA = 39
"""Grafana 10.4's; later ones migrate it when they load it."""
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24
"""The width of Grafana's grid."""
_SIZES = {"stat": (4, 4), "timeseries": (8, 8), "table": (24, 6)}
"""Width and height by type of panel."""


def build(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard as Grafana loads it."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["sgg-rl"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "links": [
            {"type": "dashboards", "tags": ["sgg-rl"], "title": "sgg-rl", "asDropdown": True}
            | {"includeVars": True, "keepTime": True}
        ],
        "panels": _laid_out(dashboard.panels),
    }


def text_of(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(build(dashboard), indent=1) + "\n"


def _laid_out(panels: list[Panel]) -> list[dict[str, Any]]:
    """From left to right, and a new row where one is full or the type changes."""
    found, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        width, height = _SIZES[panel.type]
        if x + width > _COLUMNS or height != row_height:
            x, y, row_height = 0, y + row_height, height
        place = {"x": x, "y": y, "w": width, "h": height}
        found.append(_panel(panel) | {"id": number, "gridPos": place})
        x += width
    return found


def _panel(panel: Panel) -> dict[str, Any]:
    custom: dict[str, Any] = {}
    if panel.type == "timeseries":
        stack = {"stacking": {"mode": "normal"}, "fillOpacity": 40} if panel.stacked else {}
        custom = {"custom": {"showPoints": "never", "spanNulls": True} | stack}
    return {
        "type": panel.type,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "thresholds": _thresholds(panel)} | custom,
            "overrides": [],
        },
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "expr": expression,
                "legendFormat": legend,
                "format": "table" if panel.type == "table" else "time_series",
                "instant": panel.type != "timeseries",
                "range": panel.type == "timeseries",
            }
            for i, (expression, legend) in enumerate(panel.series.items())
        ],
    }


def _thresholds(panel: Panel) -> dict[str, Any]:
    steps: list[tuple[str, float | None]] = [("green", None)]
    if panel.red_from is not None:
        steps.append(("red", panel.red_from))
    if panel.red_below is not None:
        steps = [("red", None), ("green", panel.red_below)]
    listed = [{"color": color, "value": value} for color, value in steps]
    return {"mode": "absolute", "steps": listed}


def _options(panel: Panel) -> dict[str, Any]:
    if panel.type == "timeseries":
        legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.type == "stat":
        last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": last, "textMode": "value_and_name"}
    return {"showHeader": True}


def _variables() -> list[dict[str, Any]]:
    """What a reader chooses: where the numbers are, and the run."""
    query = "label_values(sgg_redis_up, run)"
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource"}
    run = {"name": "run", "label": "Run", "type": "query", "datasource": _DATASOURCE}
    asked = {"definition": query, "query": {"query": query, "refId": "run"}}
    chosen = {"current": {}, "hide": 0}
    return [
        source | {"query": "prometheus"} | chosen,
        run | asked | {"refresh": 2, "sort": 2} | chosen,
    ]


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for dashboard in DASHBOARDS:
        file = FOLDER / f"{dashboard.uid}.json"
        file.write_text(text_of(dashboard))
        sys.stdout.write(f"wrote {file}\n")


if __name__ == "__main__":
    main()
