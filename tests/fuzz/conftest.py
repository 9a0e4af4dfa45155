"""How many inputs each parser gets: 40 in `make test`, `FUZZ_EXAMPLES` in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "40")),
    deadline=None,  # a slow or busy machine is no failure
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.load_profile("fuzz")
