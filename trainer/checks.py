"""What can be known to be wrong before anything is loaded."""

from services.errors import SettingsError
from services.settings import Settings


def check_grpo(settings: Settings) -> None:
    """Refuse settings that each make sense alone, and not together, for `sgg-rl train`.

    Raises:
        SettingsError: With the fields and what to set.
    """
    lora = settings.lora
    if (lora.rank > 0) != (settings.weights.transport == "lora"):
        raise SettingsError(
            f"lora.rank = {lora.rank} and weights.transport = '{settings.weights.transport}': an "
            "adapter is trained and sent alone, so set lora.rank over 0 and the transport 'lora', "
            "or neither"
        )
    if lora.rank > settings.rollout.max_lora_rank:
        raise SettingsError(
            f"lora.rank ({lora.rank}) is over rollout.max_lora_rank "
            f"({settings.rollout.max_lora_rank}): raise that"
        )
    if lora.dropout:
        raise SettingsError(
            "lora.dropout is for SFT: in GRPO the trainer must score with the weights that sampled"
        )
