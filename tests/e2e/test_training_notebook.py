"""The notebook that trains: real vLLM, real DeepSpeed, as a person runs it."""

import pytest

from tests.notebooks import run_notebook


def test_own_pictures_are_trained_on(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("nb")
    shown = run_notebook("train-on-your-own-pictures.ipynb", folder, monkeypatch, timeout_s=500)
    assert "50 pictures" in shown
    assert "<Run 'mine': 2 of 2 steps, finished>" in shown
    assert "step 1: reward " in shown
    assert "advantage" in shown
    assert "'report.html'" in shown
    assert shown.count("<svg>") == 2
