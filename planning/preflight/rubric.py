"""Whether a run's rubric can reward its task, before anything is started."""

from reward_service.rubrics import rubric_for
from services.errors import InvalidInputError, SettingsError
from services.settings import Settings


def check_rubric(settings: Settings) -> None:
    """Refuse a rubric that is none, or has no term for `data.task`.

    Raises:
        SettingsError: With what to write.
    """
    try:
        rubric_for(settings.reward.rubric, settings.data.task)
    except InvalidInputError as error:
        raise SettingsError(f"reward.rubric: {error.message}") from error
