"""The notebooks that need no model run from their first cell to their last."""

import pytest

from tests.notebooks import EXAMPLES, run_notebook

TRAINS = "train-on-your-own-pictures.ipynb"
"""Run by tests/e2e/test_training_notebook.py."""


def test_every_notebook_has_a_test() -> None:
    tested = {"score-and-draw.ipynb", "compare-two-models.ipynb", TRAINS}
    assert {file.name for file in EXAMPLES.glob("*.ipynb")} == tested


def test_answers_are_scored_and_drawn(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run_notebook("score-and-draw.ipynb", tmp_path_factory.mktemp("nb"), monkeypatch)
    assert "right                10.00  ok" in shown
    assert "cut off               0.00  invalid_json" in shown
    assert shown.count("<svg>") == 3


def test_two_models_are_compared(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = run_notebook("compare-two-models.ipynb", tmp_path_factory.mktemp("nb"), monkeypatch)
    assert "<Comparison of 'sft' with 'start': 48 images, 26 of 47 differences" in shown
    assert "strict recall@20   0.000 -> 0.104  +0.104 [+0.031, +0.188]" in shown
    assert shown.count("<svg>") == 2
