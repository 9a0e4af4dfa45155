"""One typed settings tree for every process of a run.

| file | holds |
|---|---|
| `tree.py` | `Settings`, of the sections in `run.py`, `parts.py`, `training.py` and `deploy.py` |
| `load.py` | files, environment and command line as one tree, and back |
| `checks.py` | what the sections must be to each other; each section checks itself |
| `secrets.py` | tokens and passwords |
| `deepspeed_json.py` | the user's own DeepSpeed JSON |
"""

from services.settings.load import dump_settings, load_settings
from services.settings.parts import RedisSettings, RewardSettings, RolloutSettings, SecuritySettings
from services.settings.run import DataSettings, ModelSettings, RunSettings
from services.settings.tree import Settings

__all__ = [
    "DataSettings",
    "ModelSettings",
    "RedisSettings",
    "RewardSettings",
    "RolloutSettings",
    "RunSettings",
    "SecuritySettings",
    "Settings",
    "dump_settings",
    "load_settings",
]
