"""Real data that lies beside a checkout on some machines: tests skip where it does not."""

from pathlib import Path

SHARED_DATA = Path(__file__).parents[2] / "shared/data"
