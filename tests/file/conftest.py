"""Files for the stores that keep one."""

from __future__ import annotations

import pytest

from memo import PickleFileStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache.memo"


@pytest.fixture
def make(path, clock):
    """Makes stores on one file and one clock, and closes them."""
    made = []

    def make(where=path, **options):
        made.append(PickleFileStore(where, **{"clock": clock, **options}))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make):
    return make()
