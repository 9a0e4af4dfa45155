"""A group's page where the reward has terms of the run's own, or a similarity that is not here."""

import json
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from console.app import create_console
from reward_service import terms
from reward_service.own_terms import load_own_terms
from services.run_folder.records import read_rollouts
from services.settings import dump_settings
from tests.rollout_runs import write_run
from tests.unit.cli.test_evaluate import Command, sgg_rl  # noqa: F401 - a fixture

CODE = '''
print("this code runs")

def few_circles(predicted, reference):
    """The share of predicted objects that are no circles <b>."""
    circles = sum("circle" in one.category for one in predicted.objects)
    return 1 - circles / max(len(predicted.objects), 1)
'''
RUBRIC = {"name": "mine", "terms": {"format": 0.5, "triplet_f1": 5.0, "few_circles": 2.0}}
GROUP = "/runs/toys/rollouts/toys-e0-r0"


@pytest.fixture
def forgets_terms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Terms that are loaded here are no other test's."""
    before = dict(terms._TERMS)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    terms._TERMS.clear()
    terms._TERMS.update(before)


def get(folder: Path, path: str) -> str:
    client = TestClient(create_console(folder / "runs"), base_url="http://127.0.0.1")
    return client.get(path).text


@pytest.mark.usefixtures("forgets_terms")
def test_terms_of_ones_own_are_shown_as_recorded_and_never_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    sgg_rl: Command,  # noqa: F811
) -> None:
    code = tmp_path / "my_rewards.py"
    code.write_text(CODE)
    shipped, place = dict(terms._TERMS), f"{code}:few_circles"
    load_own_terms([place])
    run = write_run(
        tmp_path, num_steps=1, num_groups=1, reward={"rubric": RUBRIC, "terms": [place]}
    )
    own = terms._TERMS.pop("few_circles")  # the console is another process
    capsys.readouterr()

    page = get(tmp_path, f"{GROUP}?step=0&completion=2")
    assert capsys.readouterr() == ("", "")
    (record,) = read_rollouts(run.run.folder, 0)
    value = record.rewards[2].breakdown["few_circles"]
    assert 0 < value < 1
    assert f'{value:.3f}</td><td class="number">2</td>' in page
    assert f"reward {record.rewards[2].total:.3f} of 7.5" in page
    assert "The share of predicted objects that are no circles &lt;b&gt;." in page
    assert "few_circles: of this run&#39;s own code, which the console does not run" in page
    assert shipped["triplet_f1"].formula in unescape(page)

    terms._TERMS["few_circles"] = own
    rows = tmp_path / "rows.jsonl"
    rows.write_text(get(tmp_path, f"{GROUP}/rows.jsonl?step=0"))
    assert sgg_rl("score", rows, "--json", "--rubric", run.run.files.config) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["total"] for line in scored] == pytest.approx([r.total for r in record.rewards])


def test_a_similarity_that_is_not_here_is_said_and_a_table_is_found(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    table = {"format": "sgg-similarity/1", "source": "t", "names": ["red circle", "red square"]}
    (tmp_path / "tables/t.json").write_text(
        json.dumps(table | {"pairs": [["red circle", "red square", 0.5]]})
    )
    run = write_run(tmp_path, num_steps=1, num_groups=1)
    for name, is_here in (("embedding:all-MiniLM-L6-v2", False), ("table:t.json", True)):
        rubric = {"name": "mine", "similarity": name, "terms": {"format": 1.0, "node_category": 2}}
        # As the run was told, from the folder above its own.
        changed = run.changed(reward={"rubric": rubric, "similarity_folder": "tables"})
        run.run.files.config.write_text(dump_settings(changed))
        page = unescape(get(tmp_path, f"{GROUP}?step=0"))
        assert (f"The reward compares names by {name}, which is not at hand" in page) != is_here
        assert f"--rubric {run.run.files.config} --similarity-folder tables" in page
