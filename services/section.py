"""What every table of a run's TOML is."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the run's TOML."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
