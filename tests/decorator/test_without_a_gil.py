"""A build without a GIL runs other generated code, which a build with one can run too: here it does."""

from __future__ import annotations

import pytest

from memo import MemoryStore, cache_aside, flight, places
from memo.testing import ManualClock


class Watching(ManualClock):
    """A clock that notes whether the store's lock is held by whoever reads it."""

    store: MemoryStore

    def monotonic(self) -> float:
        self.held = self.store._shelf.lock._is_owned()  # type: ignore[attr-defined]
        return super().monotonic()


def hits_under_the_lock(locked: bool, monkeypatch) -> bool:
    monkeypatch.setattr(places, "LOCKED", locked)
    clock = Watching()
    store = Watching.store = MemoryStore(clock=clock, cleanup_interval=None)

    class Users:
        @cache_aside(store=store, ttl=60)
        def get(self, x: int) -> int:
            return x

    @cache_aside(store=store, ttl=60)
    def f(x: int) -> int:
        return x

    users = Users()
    for call in (f, users.get):
        assert (call(1), call(1)) == (1, 1)
        assert (call.stats().hits, call.stats().misses) == (1, 1)
        assert clock.held is locked
    assert not store._shelf.lock._is_owned()  # type: ignore[attr-defined]
    return clock.held


def test_without_a_gil_a_hit_takes_the_lock(monkeypatch) -> None:
    assert hits_under_the_lock(True, monkeypatch)


def test_with_a_gil_a_hit_takes_none(monkeypatch) -> None:
    assert not hits_under_the_lock(False, monkeypatch)


def test_without_a_gil_a_flight_is_taken_off_its_table_under_a_lock(monkeypatch) -> None:
    monkeypatch.setattr(flight, "LOCKED", True)
    seen = []

    class Witness:
        def __enter__(self) -> None:
            seen.append("locked")

        def __exit__(self, *_: object) -> None:
            seen.append("free")

    f = cache_aside(store=MemoryStore(cleanup_interval=None))(lambda x: x)
    f(1)
    seen.clear()
    monkeypatch.setattr(flight, "_lock", Witness())
    assert (f(2), f(2)) == (2, 2)
    assert seen == ["locked", "free"]
    assert f._self_memoized.space.flights == {}


@pytest.mark.parametrize("locked", [True, False])
def test_a_load_leaves_the_flight_that_has_replaced_its_own(monkeypatch, locked) -> None:
    monkeypatch.setattr(flight, "LOCKED", locked)

    @cache_aside(store=MemoryStore(cleanup_interval=None))
    def f(x: int) -> int:
        flights[x] = other
        return x

    memoized = f._self_memoized  # type: ignore[attr-defined]
    flights = memoized.attached().flights
    other = memoized._flight(memoized.space, 1, (1,), {})
    assert f(1) == 1
    assert flights == {1: other}
