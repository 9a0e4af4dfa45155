"""The dashboards' JSON is what `build.py` writes, and what Grafana's provisioning asks for."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import build, panels

ROOT = Path(__file__).parents[3]
GRAFANA = ROOT / "deploy/grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
DASHBOARDS = [json.loads(file.read_text()) for file in FILES]


@pytest.fixture(params=DASHBOARDS, ids=[file.stem for file in FILES])
def dashboard(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


def test_the_files_are_what_the_generator_writes() -> None:
    written = {f"{d.uid}.json": build.text_of(d) for d in panels.DASHBOARDS}
    assert {file.name: file.read_text() for file in FILES} == written, (
        "run `python -m deploy.grafana.build`"
    )


def test_pages_can_be_told_apart() -> None:
    assert len({d["uid"] for d in DASHBOARDS}) == len({d["title"] for d in DASHBOARDS}) == 5


def test_a_page_has_what_grafana_needs(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == 39
    assert len(dashboard["uid"]) <= 40
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["run"]["query"]["query"] == "label_values(sgg_redis_up, run)"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in dashboard["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in dashboard["panels"]:
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert refs
        assert len(set(refs)) == len(refs)
        assert panel["fieldConfig"]["defaults"]["unit"] in {
            *("short", "s", "bytes", "percentunit"),
        }


def test_every_expression_is_of_the_chosen_run(dashboard: dict[str, Any]) -> None:
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            selectors = re.findall(r"[\w:]+\{", text)
            assert selectors or "$run" in text
            # Text of another variable would go to Prometheus as it stands.
            assert set(re.findall(r"\$\w+", text)) <= {"$run", "$__rate_interval"}
            assert text.count('run="$run"') == len(re.findall(r"\{[^}]*\}", text)), text


def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def test_provisioning() -> None:
    folder = GRAFANA / "provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["url"]) == ("prometheus", "${PROMETHEUS_URL}")
    (provider,) = yaml.safe_load((folder / "dashboards/sgg-rl.yml").read_text())["providers"]
    assert provider["type"] == "file"


def test_every_alert_says_how_bad_it_is_and_where_help_stands() -> None:
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    page = (ROOT / "docs/operations.md").read_text()
    anchors = re.findall(r'<a id="([\w-]+)"></a>', page)
    wanted = set()
    for alert in alerts:
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description", "runbook"} == alert["annotations"].keys()
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert file == "docs/operations.md"
        wanted.add(anchor)
        kebab = re.sub(r"(?<!^)(?=[A-Z])", "-", alert["alert"].removeprefix("Sgg")).lower()
        assert anchor == kebab
    assert sorted(anchors) == sorted(wanted)
