"""Places to mount in; see `support.fuseplace`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.fuseplace import LAYER, WAYS, Place, place_for


@pytest.fixture(params=[*WAYS, "user nolane"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return a place in each of the three ways, and once without the direct lane.

    The standard layer is in `base`.
    """
    way, *options = request.param.split()
    with place_for(way) as found:
        found.options = tuple(options)
        found.sh(LAYER)
        yield found


@pytest.fixture
def user() -> Iterator[Place]:
    """Return a plain user's place, with the standard layer in `base`."""
    with place_for("user") as found:
        found.sh(LAYER)
        yield found


@pytest.fixture
def root() -> Iterator[Place]:
    """Return root's place, with the standard layer in `base`."""
    with place_for("root") as found:
        found.sh(LAYER)
        yield found
