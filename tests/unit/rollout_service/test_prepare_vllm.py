import logging

import pytest

from rollout_service.http.app import prepare_vllm
from services.host.environment import environment_value
from services.settings import Settings

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"


@pytest.mark.parametrize(("runner", "value"), [("v1", "0"), ("v2", "1")])
def test_the_setting_chooses_vllm_s_model_runner_and_says_so_where_the_environment_differs(
    runner: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_STREAM", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.setenv(name, "set already")
    settings = Settings.model_validate(
        {
            "model": {"path": "m"},
            "data": {"train": "unused"},
            "rollout": {"model_runner": runner},
        }
    )
    for given, num_warnings in ((value, 0), (str(1 - int(value)), 1)):
        monkeypatch.setenv(VARIABLE, given)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            prepare_vllm(settings)
        assert environment_value(VARIABLE) == value
        assert caplog.text.count("is not followed: rollout.model_runner is") == num_warnings
    assert environment_value("VLLM_LOGGING_LEVEL") == "set already"
