"""Terms of one's own stay in the test that loads them."""

import sys
from collections.abc import Iterator

import pytest

from reward_service import terms
from tests.unit.reward_service.own_terms import forget


@pytest.fixture
def own_terms_are_forgotten() -> Iterator[None]:
    """What is loaded is forgotten at the end."""
    before, places = dict(terms._TERMS), list(sys.path)
    yield
    forget(before, "helper", "tools", "tools.deep", "pairing")
    sys.path[:] = places
