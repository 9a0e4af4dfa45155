"""Whether the packages are here that `[records]` asks for, without loading them."""

from importlib.util import find_spec

from services.errors import SettingsError
from services.settings import Settings


def check_trackers(settings: Settings) -> None:
    """Refuse a start whose curves could not be drawn.

    Raises:
        SettingsError: With what to do.
    """
    for package in ("tensorboard", "wandb"):
        if getattr(settings.records, package) and find_spec(package) is None:
            raise SettingsError(
                f"records.{package} is on and {package} is not installed: pip install {package}, "
                "or set it to false"
            )
